{{/* The pod of a server, for both kinds of workload. */}}
{{- define "chatterbox.serverPod" -}}
{{- $name := include "chatterbox.fullname" . -}}
metadata:
  labels:
    {{- include "chatterbox.selector" (dict "root" . "component" "server") | nindent 4 }}
    {{- with .Values.server.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/settings: {{ toYaml .Values.settings | sha256sum }}
    checksum/secrets: {{ toYaml .Values.secrets | sha256sum }}
    {{- with .Values.server.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "chatterbox.placement" (dict "root" . "of" .Values.server) | nindent 2 }}
  {{- with .Values.server.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .Values.server.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext: {{- include "chatterbox.podSecurity" . | nindent 4 }}
  # until nobody sends it requests any more, for those under way, and for Triton and the models to close
  terminationGracePeriodSeconds: {{ add .Values.server.preStopSeconds .Values.server.graceSeconds 30 }}
  containers:
    - name: server
      image: {{ include "chatterbox.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - --no-gateway
        - --startup-timeout={{ .Values.server.startupSeconds }}
        - --grace-seconds={{ .Values.server.graceSeconds }}
        {{- if .Values.server.requireKey }}
        - --key-file=/etc/chatterbox/keys/server-key
        {{- end }}
        {{- with .Values.server.arguments }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      env:
        - { name: CHATTERBOX_CONFIG, value: /etc/chatterbox/settings/settings.yaml }
        {{- range $variable, $key := dict "CHATTERBOX_VOICE_STORE" "database" "CHATTERBOX_VOICE_KEY" "voice-key" "HF_TOKEN" "hub-token" }}
        {{- with include "chatterbox.secretVariable" (dict "root" $ "name" $variable "key" $key "required" false) }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- end }}
        {{- include "chatterbox.variables" .Values.server.environment | nindent 8 }}
      ports:
        - { name: http, containerPort: 8000 }
        - { name: grpc, containerPort: 8001 }
        - { name: metrics, containerPort: 8002 }
      # No port is open before the models are ready: weights may be fetched, graphs are captured.
      startupProbe:
        httpGet: { path: /v2/health/ready, port: http }
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ div (add .Values.server.startupSeconds 4) 5 }}
      readinessProbe:
        httpGet: { path: /v2/health/ready, port: http }
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      # A model that dies ends the container by itself; this finds a server that hangs.
      livenessProbe:
        httpGet: { path: /v2/health/live, port: http }
        periodSeconds: 10
        timeoutSeconds: 10
        failureThreshold: 6
      lifecycle:
        # It goes on serving until Envoy has learnt that it is to go; then it refuses what is new.
        preStop: { exec: { command: [sleep, {{ .Values.server.preStopSeconds | quote }}] } }
      resources: {{- include "chatterbox.serverResources" . | nindent 8 }}
      securityContext: {{- include "chatterbox.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - { name: cache, mountPath: /var/cache/chatterbox }
        - { name: shared-memory, mountPath: /dev/shm }
        - { name: temporary, mountPath: /tmp }
        - { name: settings, mountPath: /etc/chatterbox/settings, readOnly: true }
        {{- if .Values.server.requireKey }}
        - { name: keys, mountPath: /etc/chatterbox/keys, readOnly: true }
        {{- end }}
  volumes:
    # Triton hands tensors to the models through it; a minute of audio is 6 MB.
    - { name: shared-memory, emptyDir: { medium: Memory, sizeLimit: {{ .Values.server.sharedMemory }} } }
    - { name: temporary, emptyDir: {} }
    - { name: settings, configMap: { name: {{ $name }}-settings } }
    {{- if .Values.server.requireKey }}
    - name: keys
      secret: { secretName: {{ include "chatterbox.secret" . }}, items: [{ key: server-key, path: server-key }] }
    {{- end }}
    {{- if not .Values.cache.enabled }}
    - { name: cache, emptyDir: {} }
    {{- else if .Values.cache.existingClaim }}
    - { name: cache, persistentVolumeClaim: { claimName: {{ .Values.cache.existingClaim }} } }
    {{- else if eq .Values.server.kind "Deployment" }}
    - { name: cache, persistentVolumeClaim: { claimName: {{ $name }}-cache } }
    {{- end }}
{{- end }}

{{- define "chatterbox.serverResources" -}}
{{- $gpu := dict -}}
{{- if .Values.server.gpu.count -}}
{{- $_ := set $gpu "limits" (dict .Values.server.gpu.resource .Values.server.gpu.count) -}}
{{- end -}}
{{- mustMergeOverwrite (deepCopy .Values.server.resources) $gpu | toYaml -}}
{{- end }}

{{- define "chatterbox.cacheClaim" -}}
accessModes: [{{ .Values.cache.accessMode }}]
{{- with .Values.cache.storageClass }}
storageClassName: {{ . }}
{{- end }}
resources: { requests: { storage: {{ .Values.cache.size }} } }
{{- end }}
