{{/* Who needs what, once. docs/rbac.md gives the reason for each verb, and a test compares the two. */}}
{{- define "gptoss.rules.operator.watch" -}}
- apiGroups: [serving.gptoss.dev]
  resources: [gptossdeployments, gatewayreports]
  verbs: [list, watch]
{{- end }}

{{- define "gptoss.rules.operator.cluster" -}}
- apiGroups: [serving.gptoss.dev]
  resources: [weighttrustpolicies]
  verbs: [list, watch]
- apiGroups: [serving.gptoss.dev]
  resources: [weighttrustpolicies/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [namespaces]
  verbs: [list, watch]
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [list, watch]
{{- end }}

{{- define "gptoss.rules.operator.work" -}}
- apiGroups: [serving.gptoss.dev]
  resources: [gptossdeployments]
  verbs: [get]
- apiGroups: [serving.gptoss.dev]
  resources: [gptossdeployments/status]
  verbs: [patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, get, patch]
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [gptoss-model-credentials]
  verbs: [get]
{{- end }}

{{- define "gptoss.rules.operator.kuberay" -}}
- apiGroups: [ray.io]
  resources: [rayservices]
  verbs: [list, watch, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch, create, patch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch]
{{- end }}

{{- define "gptoss.rules.operator.kuberayVersion" -}}
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  resourceNames: [rayservices.ray.io]
  verbs: [get]
{{- $settings := include "gptoss.operatorSettings" . | fromYaml }}
{{- if ne (toString $settings.kubeRay.readNodes) "false" }}
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
{{- end }}
{{- end }}

{{- define "gptoss.rules.operator.system" -}}
- apiGroups: [serving.gptoss.dev]
  resources: [gatewayreports]
  verbs: [delete]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "gptoss.operatorName" . }}]
  verbs: [get, list, watch, update]
{{- end }}

{{- define "gptoss.rules.gateway.watch" -}}
- apiGroups: [serving.gptoss.dev]
  resources: [gptossdeployments]
  verbs: [list, watch]
{{- end }}

{{- define "gptoss.rules.gateway.system" -}}
- apiGroups: [serving.gptoss.dev]
  resources: [gatewayreports]
  verbs: [list, watch, create, patch, delete]
{{- end }}
