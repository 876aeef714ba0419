{{/* Names: one helper per resource, at most 63 characters with their suffix, since most of them become DNS labels. */}}

{{- define "fedlearn.fullname" -}}
{{- $chart := .Values.nameOverride | default .Chart.Name -}}
{{- $whole := .Values.fullnameOverride | default (contains $chart .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $chart)) -}}
{{- /* leaves 28 for what is put around it: "data-" before a claim, a role, an ordinal or a hash of Kubernetes behind it */ -}}
{{- $whole | trunc 35 | trimSuffix "-" -}}
{{- end -}}

{{- define "fedlearn.server.name" -}}{{ include "fedlearn.fullname" . }}-server{{- end -}}
{{- define "fedlearn.aggregator.name" -}}{{ include "fedlearn.fullname" . }}-aggregator{{- end -}}
{{- define "fedlearn.device.name" -}}{{ include "fedlearn.fullname" . }}-device{{- end -}}
{{- define "fedlearn.evaluator.name" -}}{{ include "fedlearn.fullname" . }}-evaluator{{- end -}}
{{- define "fedlearn.storage.name" -}}{{ include "fedlearn.fullname" . }}-storage{{- end -}}
{{- define "fedlearn.task.name" -}}{{ include "fedlearn.fullname" . }}-task{{- end -}}
{{- define "fedlearn.test.name" -}}{{ include "fedlearn.fullname" . }}-test{{- end -}}

{{/* Of the whole cluster, hence with the namespace. */}}
{{- define "fedlearn.tokenReview.name" -}}{{ printf "%s-%s-token-review" .Release.Namespace (include "fedlearn.fullname" .) }}{{- end -}}

{{/* Secrets: the user's own, or the chart's. */}}
{{- define "fedlearn.operator.secret" -}}
{{ .Values.operator.existingSecret | default (printf "%s-operator" (include "fedlearn.fullname" .)) }}
{{- end -}}
{{- define "fedlearn.identity.secret" -}}
{{ .Values.aggregator.identity.existingSecret | default (printf "%s-identity" (include "fedlearn.aggregator.name" .)) }}
{{- end -}}
{{- define "fedlearn.identity.configMap" -}}{{ include "fedlearn.aggregator.name" . }}-identity{{- end -}}
{{- define "fedlearn.database.secret" -}}
{{ .Values.database.existingSecret | default (printf "%s-database" (include "fedlearn.fullname" .)) }}
{{- end -}}
{{- define "fedlearn.storage.secret" -}}
{{ .Values.objectStore.seaweedfs.existingSecret | default (include "fedlearn.storage.name" .) }}
{{- end -}}
{{- define "fedlearn.storage.serverSecret" -}}
{{ .Values.objectStore.server.existingSecret | default (printf "%s-server" (include "fedlearn.storage.name" .)) }}
{{- end -}}
{{- define "fedlearn.storage.aggregatorSecret" -}}
{{ .Values.objectStore.aggregator.existingSecret | default (printf "%s-aggregator" (include "fedlearn.storage.name" .)) }}
{{- end -}}

{{- define "fedlearn.server.claim" -}}
{{ .Values.server.persistence.existingClaim | default (include "fedlearn.server.name" .) }}
{{- end -}}
{{- define "fedlearn.taskName" -}}
{{ .Values.task.name | default (printf "%s-%s" .Values.device.data.dataset .Values.task.model) }}
{{- end -}}

{{/* Addresses inside the namespace. */}}
{{- define "fedlearn.server.url" -}}http://{{ include "fedlearn.server.name" . }}:8000{{- end -}}
{{- /* one that shares rounds has an address of its own, behind a Service for its pod alone; number 0 comes first */ -}}
{{- define "fedlearn.aggregator.url" -}}
{{- $name := include "fedlearn.aggregator.name" . -}}
{{- $replicas := int .Values.aggregator.replicas -}}
{{- if eq $replicas 1 -}}
http://{{ $name }}:8003
{{- else -}}
{{- range $number := until $replicas }}{{ if $number }},{{ end }}http://{{ $name }}-{{ $number }}:8003{{ end -}}
{{- end -}}
{{- end -}}
{{- define "fedlearn.storage.endpoint" -}}
{{- if .Values.objectStore.seaweedfs.enabled -}}
http://{{ include "fedlearn.storage.name" . }}:8333
{{- else -}}
{{ .Values.objectStore.endpoint }}
{{- end -}}
{{- end -}}
