{{/* What all pods have in common. */}}

{{/* Takes (list $ "server"). */}}
{{- define "fedlearn.image" -}}
{{- $ := index . 0 -}}
{{- $images := $.Values.images -}}
{{- $image := index $images (index . 1) -}}
{{- if not (contains ":" $image) }}{{ $image = printf "%s:%s" $image ($images.tag | default $.Chart.AppVersion) }}{{ end -}}
image: {{ with $images.registry }}{{ . }}/{{ end }}{{ $image }}
imagePullPolicy: {{ $images.pullPolicy }}
{{- end -}}

{{/*
What every pod's specification begins with: the pod's side of Pod Security "restricted", and where it may run.
Takes (list $ 10001 values.pod), the number being the user's, and that of the group that volumes belong to.
*/}}
{{- define "fedlearn.pod" -}}
{{- $ := index . 0 -}}
{{- $user := index . 1 -}}
{{- $pod := index . 2 -}}
# service links would put FEDLEARN_SERVER_PORT=tcp://… and the like among the settings
enableServiceLinks: false
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ $user }}
  runAsGroup: {{ $user }}
  fsGroup: {{ $user }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with $.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" }}
{{- with index $pod $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with $pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* The container's side; what it may write to are volumes. */}}
{{- define "fedlearn.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* A token for each service that this pod calls, good at that one alone. Takes (list $ "server" "aggregator"). */}}
{{- define "fedlearn.tokens" -}}
{{- $ := index . 0 -}}
name: tokens
projected:
  defaultMode: 0440
  sources:
    {{- range rest . }}
    - serviceAccountToken:
        audience: fedlearn-{{ . }}
        path: {{ . }}
        expirationSeconds: {{ $.Values.identity.tokenSeconds }}
    {{- end }}
{{- end -}}

{{/* What a Kubernetes client looks for in a pod: a token for the API, its CA, the namespace. */}}
{{- define "fedlearn.apiAccess" -}}
name: kubernetes
projected:
  defaultMode: 0440
  sources:
    - serviceAccountToken:
        path: token
        expirationSeconds: 3600
    - configMap:
        name: kube-root-ca.crt
        items:
          - key: ca.crt
            path: ca.crt
    - downwardAPI:
        items:
          - path: namespace
            fieldRef:
              fieldPath: metadata.namespace
{{- end -}}

{{/* A role's credential for the object storage; none where the cloud gives the service account one. Takes (list $ "server"). */}}
{{- define "fedlearn.storage.credential" -}}
{{- $ := index . 0 -}}
{{- if include "fedlearn.storage.hasCredential" . -}}
- name: FEDLEARN_STORAGE__ACCESS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include (printf "fedlearn.storage.%sSecret" (index . 1)) $ }}
      key: access_key
- name: FEDLEARN_STORAGE__SECRET_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include (printf "fedlearn.storage.%sSecret" (index . 1)) $ }}
      key: secret_key
{{- end -}}
{{- end -}}

{{- define "fedlearn.storage.hasCredential" -}}
{{- $ := index . 0 -}}
{{- $role := index $.Values.objectStore (index . 1) -}}
{{- if or $.Values.objectStore.seaweedfs.enabled $role.existingSecret $role.accessKey }}true{{ end -}}
{{- end -}}

{{/* Settings of the object storage that are no secret. */}}
{{- define "fedlearn.storage.settings" -}}
FEDLEARN_STORAGE__REGION: {{ .Values.objectStore.region | quote }}
FEDLEARN_STORAGE__MODELS_BUCKET: {{ .Values.objectStore.buckets.models | quote }}
FEDLEARN_STORAGE__UPDATES_BUCKET: {{ .Values.objectStore.buckets.updates | quote }}
{{- with include "fedlearn.storage.endpoint" . }}
FEDLEARN_STORAGE__ENDPOINT_URL: {{ . | quote }}
{{- end }}
{{- with .Values.objectStore.publicEndpoint }}
FEDLEARN_STORAGE__PUBLIC_ENDPOINT_URL: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* How callers' tokens are checked, and whose are whose. */}}
{{- define "fedlearn.identity.settings" -}}
FEDLEARN_IDENTITY__MODE: {{ .Values.identity.mode }}
FEDLEARN_IDENTITY__NAMESPACE: {{ .Release.Namespace }}
FEDLEARN_IDENTITY__SERVER: {{ include "fedlearn.server.name" . }}
FEDLEARN_IDENTITY__AGGREGATOR: {{ include "fedlearn.aggregator.name" . }}
FEDLEARN_IDENTITY__DEVICE: {{ include "fedlearn.device.name" . }}
FEDLEARN_IDENTITY__EVALUATOR: {{ include "fedlearn.evaluator.name" . }}
{{- if eq .Values.identity.mode "jwks" }}
FEDLEARN_IDENTITY__JWKS: {{ .Values.identity.jwksUrl | quote }}
FEDLEARN_IDENTITY__JWKS_CA_FILE: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
FEDLEARN_IDENTITY__JWKS_TOKEN_FILE: /var/run/secrets/kubernetes.io/serviceaccount/token
{{- with .Values.identity.issuer }}
FEDLEARN_IDENTITY__ISSUER: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/*
Probes of a fedlearn service, on its named port:
startup   gives it two minutes to begin to listen (a device loads TensorFlow first), and holds the other two back meanwhile;
liveness  restarts a process that does not even answer that it is alive for a minute; it asks nothing of anybody else, so that an
          outage of the storage or of the server restarts nobody;
readiness takes it out of its Service, and shows in kubectl, while it can't do its job now.
*/}}
{{- define "fedlearn.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end -}}

{{/* Pods start anew when what they read at their start has changed. Takes (list $ "server" names of secrets…). */}}
{{- define "fedlearn.podAnnotations" -}}
{{- $ := index . 0 -}}
{{- $component := index . 1 -}}
checksum/config: {{ include (print $.Template.BasePath "/" $component "/configmap.yaml") $ | sha256sum }}
{{- $secrets := dict -}}
{{- range slice . 3 }}{{ $_ := set $secrets . (include "fedlearn.secrets" (list $ .)) }}{{ end }}
{{- with $secrets }}
checksum/secrets: {{ toJson . | sha256sum }}
{{- end }}
{{- with (index . 2).annotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "fedlearn.database.external" -}}
{{- if or .Values.database.existingSecret .Values.database.url }}true{{ end -}}
{{- end -}}
