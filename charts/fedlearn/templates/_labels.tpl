{{/* Labels; all take (list $ "component"). What selects is small, and never changes. */}}

{{- define "fedlearn.selectorLabels" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ $.Values.nameOverride | default $.Chart.Name }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "fedlearn.labels" -}}
{{- $ := index . 0 -}}
{{ include "fedlearn.selectorLabels" . }}
app.kubernetes.io/part-of: fedlearn
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name ($.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/* metadata of a resource: name, namespace, labels. Takes (list $ "component" "name"). */}}
{{- define "fedlearn.metadata" -}}
{{- $ := index . 0 -}}
name: {{ index . 2 }}
namespace: {{ $.Release.Namespace }}
labels:
  {{- include "fedlearn.labels" . | nindent 2 }}
{{- end -}}

{{/* Labels of a pod: no version among them, or every one of the chart would start all pods anew. Takes (list $ "component" values.pod). */}}
{{- define "fedlearn.podLabels" -}}
{{ include "fedlearn.selectorLabels" . }}
app.kubernetes.io/part-of: fedlearn
{{- with (index . 2).labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}
