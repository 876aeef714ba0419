{{/* Parts of NetworkPolicies. What no policy allows is refused, in both directions. */}}

{{/* metadata, selector and both directions. Takes (list $ "server" "name"). */}}
{{- define "fedlearn.networkPolicy" -}}
{{- $ := index . 0 -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- include "fedlearn.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "fedlearn.selectorLabels" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
{{- end -}}

{{/* Pods of a role. Takes (list $ "server"). */}}
{{- define "fedlearn.peer" -}}
podSelector:
  matchLabels:
    {{- include "fedlearn.selectorLabels" . | nindent 4 }}
{{- end -}}

{{/* role --> another role of this release. Takes (list $ "server" 8000). */}}
{{- define "fedlearn.egress.role" -}}
- to:
    - {{ include "fedlearn.peer" . | nindent 6 | trim }}
  ports:
    - port: {{ index . 2 }}
{{- end -}}

{{/* role --> cluster DNS, wherever it runs */}}
{{- define "fedlearn.egress.dns" -}}
- ports:
    - port: 53
      protocol: UDP
    - port: 53
{{- end -}}

{{/* role --> addresses outside of what selectors can name. Takes (dict "cidrs" … "ports" …). */}}
{{- define "fedlearn.egress.addresses" -}}
- to:
    {{- range .cidrs }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  ports:
    {{- range .ports }}
    - port: {{ int . }}
    {{- end }}
{{- end -}}

{{/* role --> object storage: the chart's own, or the one that the values name */}}
{{- define "fedlearn.egress.storage" -}}
{{- if .Values.objectStore.seaweedfs.enabled -}}
{{ include "fedlearn.egress.role" (list . "storage" 8333) }}
{{- else -}}
{{ include "fedlearn.egress.addresses" .Values.networkPolicy.objectStore }}
{{- end -}}
{{- end -}}
