{{- define "chatterbox.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Labels of one component: (dict "root" $ "component" "server") */}}
{{- define "chatterbox.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "chatterbox.labels" -}}
{{ include "chatterbox.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: chatterbox
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "chatterbox.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The name of the Secret with the keys; empty where there is none. */}}
{{- define "chatterbox.secret" -}}
{{- if .Values.secrets.existing -}}
{{- .Values.secrets.existing -}}
{{- else if compact (values (omit .Values.secrets "existing")) -}}
{{- include "chatterbox.fullname" . -}}
{{- end -}}
{{- end }}

{{/* A variable from the Secret; left out where the Secret lacks it: (dict "root" $ "name" "HF_TOKEN" "key" "hub-token") */}}
{{- define "chatterbox.secretVariable" -}}
{{- $secret := include "chatterbox.secret" .root -}}
{{- if and $secret (or .root.Values.secrets.existing (index .root.Values.secrets .key)) -}}
- name: {{ .name }}
  valueFrom: { secretKeyRef: { name: {{ $secret }}, key: {{ .key }}, optional: {{ not .required }} } }
{{- end -}}
{{- end }}

{{/* Variables from a map */}}
{{- define "chatterbox.variables" -}}
{{- range $name, $value := . }}
- { name: {{ $name }}, value: {{ $value | toString | quote }} }
{{- end }}
{{- end }}

{{/* Where the gateway and the clients reach the servers' gRPC and HTTP */}}
{{- define "chatterbox.headless" -}}
{{ include "chatterbox.fullname" . }}-server.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "chatterbox.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.security }}
{{- if not (kindIs "invalid" .user) }}
runAsUser: {{ .user }}
{{- end }}
{{- if not (kindIs "invalid" .group) }}
runAsGroup: {{ .group }}
{{- end }}
{{- if not (kindIs "invalid" .volumeGroup) }}
fsGroup: {{ .volumeGroup }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
{{- end }}
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "chatterbox.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* Where pods run, and who pulls their images: (dict "root" $ "of" .Values.server) */}}
{{- define "chatterbox.placement" -}}
serviceAccountName: {{ .root.Values.serviceAccount.name | default (include "chatterbox.fullname" .root) }}
automountServiceAccountToken: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The values that contradict each other */}}
{{- define "chatterbox.check" -}}
{{- $several := or (gt (int .Values.server.replicas) 1) (ne .Values.autoscaling.kind "none") -}}
{{- $shared := and .Values.cache.enabled (or .Values.cache.existingClaim (eq .Values.server.kind "Deployment")) -}}
{{- if and .Values.server.requireKey (not .Values.secrets.existing) (not (index .Values.secrets "server-key")) -}}
{{- fail "server.requireKey needs secrets.server-key or secrets.existing" -}}
{{- end -}}
{{- if and .Values.gateway.enabled .Values.gateway.changeVoices (not .Values.secrets.existing) (not (index .Values.secrets "voice-key")) -}}
{{- fail "gateway.changeVoices needs secrets.voice-key or secrets.existing" -}}
{{- end -}}
{{- if and $several $shared (not .Values.secrets.existing) (not .Values.secrets.database) -}}
{{- fail "servers that share one cache must not share its SQLite file of voices: set secrets.database" -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- end }}
