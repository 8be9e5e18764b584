{{- define "gptoss.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "gptoss.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "gptoss.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "gptoss.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "gptoss.operatorName" -}}{{ include "gptoss.fullname" . }}{{- end }}
{{- define "gptoss.gatewayName" -}}{{ include "gptoss.fullname" . }}-gateway{{- end }}

{{- define "gptoss.operatorAccount" -}}
{{- default (ternary (include "gptoss.operatorName" .) "default" .Values.operator.serviceAccount.create) .Values.operator.serviceAccount.name }}
{{- end }}
{{- define "gptoss.gatewayAccount" -}}
{{- default (ternary (include "gptoss.gatewayName" .) "default" .Values.gateway.serviceAccount.create) .Values.gateway.serviceAccount.name }}
{{- end }}

{{- define "gptoss.installation" -}}{{ default .Release.Name .Values.installation }}{{- end }}

{{- define "gptoss.gatewayURL" -}}
{{- default (printf "%s://%s.%s.svc:%s/v1" (ternary "https" "http" (eq "true" (include "gptoss.gatewayTLS" .))) (include "gptoss.gatewayName" .) .Release.Namespace (include "gptoss.gatewayPort" .)) .Values.gatewayURL }}
{{- end }}

{{/* "true" if the gateway speaks HTTPS, wherever that was said: gateway.tls or gateway.settings. */}}
{{- define "gptoss.gatewayTLS" -}}
{{- not (empty (include "gptoss.gatewaySettings" . | fromYaml).tls) }}
{{- end }}

{{- define "gptoss.gatewayPort" -}}
{{- default (ternary 443 80 (eq "true" (include "gptoss.gatewayTLS" .))) .Values.gateway.service.port }}
{{- end }}

{{- define "gptoss.selector" -}}
app.kubernetes.io/name: {{ include "gptoss.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "gptoss.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: gptoss
{{ include "gptoss.selector" . }}
{{- with .root.Values.global.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "gptoss.image" -}}
{{- $image := .Values.image }}
{{- $registry := default $image.registry .Values.global.imageRegistry }}
{{- $path := printf "%s/%s" (required "image.registry is empty: name the registry that holds your image of docker/operator.Dockerfile, such as registry.example.com/platform" $registry) $image.repository }}
{{- if $image.digest }}{{ $path }}@{{ $image.digest }}{{ else }}{{ $path }}:{{ default .Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{/* The replicas' image: a whole name, or one below global.imageRegistry. As everywhere, what stands before the first slash
     is a registry if it has a dot or a port, or is localhost. */}}
{{- define "gptoss.servingImage" -}}
{{- $image := required "kubeRay.image is empty: name your image of docker/serving.Dockerfile, best by digest" .Values.kubeRay.image }}
{{- $registry := .Values.global.imageRegistry }}
{{- if or (not $registry) (regexMatch "^([^/]*[.:][^/]*|localhost)/" $image) }}{{ $image }}{{ else }}{{ $registry }}/{{ $image }}{{ end }}
{{- end }}
