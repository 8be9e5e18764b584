{{/* The settings files, as operator and gateway read them. Nothing secret is in them: tokens are files of Secrets. */}}
{{- define "gptoss.operatorSettings" -}}
{{- $clusters := list }}
{{- range .Values.rayClusters }}
{{- $cluster := dict "name" .name "dashboardURL" .dashboardURL "serveURL" .serveURL "gatewayTokenFile" (printf "/etc/gptoss/ray/%s/gateway-token" .name) "allowedNamespaces" (default (list "*") .allowedNamespaces) }}
{{- if .tokenSecret }}{{ $_ := set $cluster "tokenFile" (printf "/etc/gptoss/ray/%s/token" .name) }}{{ end }}
{{- $clusters = append $clusters $cluster }}
{{- end }}
{{- $settings := dict
  "installation" (include "gptoss.installation" .)
  "systemNamespace" .Release.Namespace
  "gatewayURL" (include "gptoss.gatewayURL" .)
  "rayClusters" $clusters
  "maxConcurrentStarts" .Values.operator.maxConcurrentStarts
  "resyncSeconds" .Values.operator.resyncSeconds
  "metrics" (dict "host" "0.0.0.0" "port" 9090)
  "leaderElection" (merge (dict "leaseName" (include "gptoss.operatorName" .)) .Values.operator.leaderElection)
  "namespaces" .Values.watchNamespaces }}
{{- with .Values.defaultRayCluster }}{{ $_ := set $settings "defaultRayCluster" . }}{{ end }}
{{- $sources := dict }}
{{- range $kind, $values := .Values.operator.weightSources }}
{{- $chosen := dict }}
{{- range $name, $value := $values }}{{ if $value }}{{ $_ := set $chosen $name $value }}{{ end }}{{ end }}
{{- if $chosen }}{{ $_ := set $sources $kind $chosen }}{{ end }}
{{- end }}
{{- if $sources }}{{ $_ := set $settings "weightSources" $sources }}{{ end }}
{{- if .Values.kubeRay.enabled }}
{{- $kubeRay := dict "image" (include "gptoss.servingImage" .) "gatewayTokenFile" "/etc/gptoss/kuberay/token" }}
{{- with .Values.global.imagePullSecrets }}{{ $_ := set $kubeRay "imagePullSecrets" . }}{{ end }}
{{- $_ := set $settings "kubeRay" (mergeOverwrite $kubeRay .Values.kubeRay.settings) }}
{{- end }}
{{- toYaml (mergeOverwrite $settings .Values.operator.settings) }}
{{- end }}

{{- define "gptoss.gatewaySettings" -}}
{{- $clusters := list }}
{{- range .Values.rayClusters }}
{{- $clusters = append $clusters (dict "name" .name "dashboardURL" .dashboardURL "serveURL" .serveURL "gatewayTokenFile" (printf "/etc/gptoss/ray/%s/gateway-token" .name) "allowedNamespaces" (default (list "*") .allowedNamespaces)) }}
{{- end }}
{{- $settings := dict
  "systemNamespace" .Release.Namespace
  "listen" (dict "host" "0.0.0.0" "port" 8080)
  "admin" (dict "host" "0.0.0.0" "port" 9090)
  "keysFile" (printf "/etc/gptoss/keys/%s" .Values.gateway.keysSecret.key)
  "rayClusters" $clusters
  "workers" (int .Values.gateway.workers)
  "limits" .Values.gateway.limits
  "shutdown" .Values.gateway.shutdown
  "namespaces" .Values.watchNamespaces }}
{{- with .Values.defaultRayCluster }}{{ $_ := set $settings "defaultRayCluster" . }}{{ end }}
{{- if .Values.kubeRay.enabled }}
{{- $access := dict "gatewayTokenFile" "/etc/gptoss/kuberay/token" }}
{{- /* Said to the operator, it counts for the gateway too: both must ask the same engines. */}}
{{- with dig "kubeRay" "serviceURL" .Values.kubeRay.settings.serviceURL .Values.operator.settings }}{{ $_ := set $access "serviceURL" . }}{{ end }}
{{- $_ := set $settings "kubeRay" $access }}
{{- end }}
{{- with .Values.gateway.tls }}
{{- if .secretName }}
{{- $tls := dict "certFile" "/etc/gptoss/tls/tls.crt" "keyFile" "/etc/gptoss/tls/tls.key" "minimumVersion" .minimumVersion }}
{{- if .clientCA.secretName }}{{ $_ := set $tls "clientCAFile" (printf "/etc/gptoss/client-ca/%s" .clientCA.key) }}{{ end }}
{{- $_ := set $settings "tls" $tls }}
{{- else if .clientCA.secretName }}
{{- fail "gateway.tls.clientCA.secretName is set and gateway.tls.secretName is not: clients show certificates over TLS only" }}
{{- end }}
{{- end }}
{{- toYaml (mergeOverwrite $settings .Values.gateway.settings) }}
{{- end }}

{{/* The Secrets of all Ray clusters as one volume; .dashboard adds Ray's own tokens, which the gateway never sees. */}}
{{- define "gptoss.rayTokens" -}}
- name: ray
  projected:
    defaultMode: 0440
    sources:
      {{- range .root.Values.rayClusters }}
      - secret:
          name: {{ .gatewayTokenSecret.name }}
          items: [{key: {{ .gatewayTokenSecret.key }}, path: {{ .name }}/gateway-token}]
      {{- if and $.dashboard .tokenSecret }}
      - secret:
          name: {{ .tokenSecret.name }}
          items: [{key: {{ .tokenSecret.key }}, path: {{ .name }}/token}]
      {{- end }}
      {{- end }}
{{- end }}
