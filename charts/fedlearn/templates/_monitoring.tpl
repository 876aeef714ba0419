{{/* Whether the chart brings its own Prometheus and Grafana, and what they are called. */}}

{{- define "fedlearn.prometheus.name" -}}{{ include "fedlearn.fullname" . }}-prometheus{{- end -}}
{{- define "fedlearn.grafana.name" -}}{{ include "fedlearn.fullname" . }}-grafana{{- end -}}
{{- define "fedlearn.dashboards.name" -}}{{ include "fedlearn.fullname" . }}-dashboard{{- end -}}

{{/* Under which name DNS has a role's pods one by one. Takes (list $ "role"). */}}
{{- define "fedlearn.metrics.name" -}}
{{- $name := include (printf "fedlearn.%s.name" (index . 1)) (index . 0) -}}
{{- has (index . 1) (list "server" "aggregator") | ternary (printf "%s-metrics" $name) $name -}}
{{- end -}}

{{/* Label of a Service whose pods another one names already: a Prometheus operator would read them twice. */}}
{{- define "fedlearn.unmonitored" -}}
prometheus.io/service-monitor: "false"
{{- end -}}

{{/* The alerts, with this release's namespace and the place of their runbooks. */}}
{{- define "fedlearn.alerts" -}}
{{- $runbooks := .Values.monitoring.rules.runbookUrl | default "docs/runbooks" | trimSuffix "/" -}}
{{- .Files.Get "alerts/fedlearn.yaml" | replace "NAMESPACE" .Release.Namespace | replace "RUNBOOKS" $runbooks -}}
{{- end -}}

{{/* Who reads metrics --> role, as peers of an ingress rule; nothing where nobody may. */}}
{{- define "fedlearn.scrapers" -}}
{{- with .Values.monitoring.namespace }}
# the monitoring namespace --> metrics
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ . }}
{{- end }}
{{- if .Values.monitoring.demo.enabled }}
# prometheus --> metrics
- {{ include "fedlearn.peer" (list . "prometheus") | nindent 2 | trim }}
{{- end }}
{{- end -}}

{{/* How a Prometheus operator's monitors name what they scrape: the dashboards and alerts go by `component`. */}}
{{- define "fedlearn.relabelings" -}}
relabelings:
  - sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_component]
    targetLabel: component
  - sourceLabels: [__meta_kubernetes_pod_name]
    targetLabel: pod
{{- end -}}
