{{/* What the number of servers follows. docs/kubernetes.md explains the three. */}}
{{- define "chatterbox.series" -}}
namespace="{{ .Release.Namespace }}",service="{{ include "chatterbox.fullname" . }}-server"
{{- end }}

{{- define "chatterbox.queryWaiting" -}}
{{- $of := include "chatterbox.series" . -}}
sum(chatterbox_utterances_waiting{ {{- $of -}} })
{{- if not .Values.autoscaling.batch }} - sum(chatterbox_batch_utterances_waiting{ {{- $of -}} }){{ end }}
{{- end }}

{{- define "chatterbox.queryBusy" -}}
{{- $of := include "chatterbox.series" . -}}
{{ if .Values.autoscaling.batch -}}
sum(chatterbox_slots_active{ {{- $of -}} })
{{- else -}}
(sum(chatterbox_slots_active{ {{- $of -}} }) - sum(chatterbox_slots_batch{ {{- $of -}} }))
{{- end }} / (sum(chatterbox_slots_active{ {{- $of -}} }) + sum(chatterbox_slots_free{ {{- $of -}} }))
{{- end }}

{{/* NaN, where no request has come, is not >= 0. */}}
{{- define "chatterbox.queryQueue" -}}
(histogram_quantile(0.95, sum by (le) (rate(chatterbox_queue_seconds_bucket{ {{- include "chatterbox.series" . -}} }[2m]))) >= 0) or vector(0)
{{- end }}

{{/* One server more or as many as there are in a minute; fewer only after a while, one at a time: a new one needs minutes. */}}
{{- define "chatterbox.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies: [{ type: Pods, value: 1, periodSeconds: 60 }, { type: Percent, value: 100, periodSeconds: 60 }]
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownSeconds }}
  policies: [{ type: Pods, value: 1, periodSeconds: 60 }]
{{- end }}
