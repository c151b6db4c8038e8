{{/* Who may use the servers: the gateway, and what the values name */}}
{{- define "chatterbox.policyUsers" -}}
{{- if .Values.gateway.enabled }}
- podSelector:
    matchLabels: {{- include "chatterbox.selector" (dict "root" . "component" "gateway") | nindent 6 }}
{{- end }}
{{- with .Values.networkPolicy.clients }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "chatterbox.policyDns" -}}
- ports: [{ protocol: UDP, port: 53 }, { protocol: TCP, port: 53 }]
{{- end }}

{{- define "chatterbox.policyMetrics" -}}
- ports: [{ protocol: TCP, port: {{ .port }} }]
  {{- with .root.Values.networkPolicy.metricsClients }}
  from: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
