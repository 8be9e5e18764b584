{{/* What every pod of ours has in common: restricted, spread, and placed as the values say. */}}
{{- define "gptoss.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "gptoss.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "gptoss.placement" -}}
{{- $values := index .root.Values .component -}}
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
topologySpreadConstraints:
{{- if $values.topologySpreadConstraints }}
  {{- toYaml $values.topologySpreadConstraints | nindent 2 }}
{{- else }}
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "gptoss.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* What a gateway's pod asks for grows with its workers, each of which has bounds of its own; what is given counts more. */}}
{{- define "gptoss.gatewayResources" -}}
{{- $workers := int (include "gptoss.gatewaySettings" . | fromYaml).workers }}
{{- $resources := dict
  "requests" (dict "cpu" (printf "%dm" (mul 250 $workers)) "memory" (printf "%dMi" (mul 256 $workers)))
  "limits" (dict "memory" (printf "%dGi" $workers)) }}
{{- range $kind, $given := .Values.gateway.resources }}
{{- range $name, $quantity := $given }}
{{- if not (hasKey $resources $kind) }}{{ $_ := set $resources $kind dict }}{{ end }}
{{- if kindIs "invalid" $quantity }}{{ $_ := unset (get $resources $kind) $name }}{{ else }}{{ $_ := set (get $resources $kind) $name $quantity }}{{ end }}
{{- end }}
{{- end }}
{{- toYaml $resources }}
{{- end }}
