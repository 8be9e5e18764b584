{{/*
A policy over what people ask of trust, and its binding. root, name, spec (its variables, conditions and validations).
It looks when a deployment is made, and when its model or its verification changes: whoever scales, labels or applies the
same again asks for nothing, and the operator writes nothing but the status, which no rule here covers.
*/}}
{{- define "gptoss.admission" -}}
{{- $name := printf "%s-%s" (include "gptoss.fullname" .root) .name }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ $name }}
  labels: {{- include "gptoss.labels" (dict "root" .root "component" "admission") | nindent 4 }}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
      - apiGroups: [serving.gptoss.dev]
        apiVersions: ["*"]
        resources: [gptossdeployments]
        operations: [CREATE, UPDATE]
  matchConditions:
    - name: asks-anew
      expression: >-
        request.operation == "CREATE" || object.spec.?model != oldObject.spec.?model ||
        object.spec.?verification != oldObject.spec.?verification
  variables:
    - name: policy
      expression: object.spec.?verification.?policyRef.?name.orValue("")
    - name: audits
      expression: object.spec.?verification.?mode.orValue("") == "Audit"
    {{- with .spec.variables }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  validations:
    {{- toYaml .spec.validations | nindent 4 }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ $name }}
  labels: {{- include "gptoss.labels" (dict "root" .root "component" "admission") | nindent 4 }}
spec:
  policyName: {{ $name }}
  validationActions: [Deny]
  {{- with .root.Values.watchNamespaces }}
  matchResources:
    namespaceSelector:
      matchExpressions:
        - {key: kubernetes.io/metadata.name, operator: In, values: {{ toJson . }}}
  {{- end }}
{{- end }}

{{/* In CEL, the field of the first of admission.namespaces whose labels a namespace has. entries, field, otherwise. */}}
{{- define "gptoss.admission.first" -}}
{{- $field := .field }}
{{- $otherwise := .otherwise }}
{{- range .entries }}
{{- $has := list }}
{{- range $key, $value := .matchLabels }}
{{- $has = append $has (printf "namespaceObject.metadata.?labels[?%s] == optional.of(%s)" (toJson $key) (toJson $value)) }}
{{- end -}}
({{ join " && " $has | default "true" }}) ? {{ get . $field | default $otherwise | toJson }} : {{ "" }}
{{- end }}
{{- toJson $otherwise }}
{{- end }}
