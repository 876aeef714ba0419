{{/* What no schema can say: values that contradict each other. Each failure says the way out. */}}
{{- define "fedlearn.checks" -}}
{{- $store := .Values.objectStore -}}
{{- $device := .Values.device -}}
{{- if and (eq $device.data.source "builtin") (gt (int $device.replicas) (int $device.data.totalShards)) -}}
{{- fail (printf "device.replicas is %v, and there are %v shards: raise device.data.totalShards before the first shard is cut" $device.replicas $device.data.totalShards) -}}
{{- end -}}
{{- if and (eq $device.data.source "directory") (not $device.data.existingClaim) -}}
{{- fail "device.data.source is directory: name the claim that holds the directories 0, 1, … in device.data.existingClaim" -}}
{{- end -}}
{{- $task := .Values.task -}}
{{- if $task.enabled -}}
{{- /* as core/policy.py counts: what floats add is not rounded up */ -}}
{{- $fewest := ceil (mulf $task.goal $task.minFraction 0.999999999999) -}}
{{- if lt (int $fewest) (int .Values.aggregator.minCohort) -}}
{{- fail (printf "by task.goal = %v and task.minFraction = %v a round may close with reports of %v, but the aggregator publishes nothing of fewer than aggregator.minCohort = %v devices: raise task.minFraction or task.goal" $task.goal $task.minFraction $fewest .Values.aggregator.minCohort) -}}
{{- end -}}
{{- if and $task.keepFraction (ne $task.codec "top_k") -}}
{{- fail (printf "task.keepFraction is of top_k, and task.codec is %s: leave keepFraction null, or set codec to top_k" $task.codec) -}}
{{- end -}}
{{- if and $task.robust (eq $task.codec "top_k") -}}
{{- fail (printf "task.codec top_k goes with the weighted mean only: leave task.robust empty instead of %s, or take another codec" $task.robust) -}}
{{- end -}}
{{- end -}}
{{- range $role := list "server" "aggregator" -}}
{{- $given := index $store $role -}}
{{- if ne (empty $given.accessKey) (empty $given.secretKey) -}}
{{- fail (printf "objectStore.%s.accessKey and secretKey go together" $role) -}}
{{- end -}}
{{- if and $store.seaweedfs.enabled (ne (empty $given.existingSecret) (empty $store.seaweedfs.existingSecret)) -}}
{{- fail "the store knows the roles by their keys: give existingSecret for all of objectStore.seaweedfs, .server and .aggregator, or for none" -}}
{{- end -}}
{{- end -}}
{{- if and $store.seaweedfs.enabled $store.endpoint -}}
{{- fail "objectStore.endpoint is of another store: set objectStore.seaweedfs.enabled to false, or leave endpoint empty" -}}
{{- end -}}
{{- if and .Values.aggregator.identity.publicKey (not .Values.aggregator.identity.existingSecret) -}}
{{- fail "aggregator.identity.publicKey goes with existingSecret; elsewhere it is derived from the private key" -}}
{{- end -}}
{{- $monitoring := .Values.monitoring -}}
{{- if and (or $monitoring.serviceMonitor.enabled $monitoring.podMonitor.enabled) .Values.networkPolicy.enabled (not $monitoring.namespace) -}}
{{- fail "the NetworkPolicies let nobody read metrics: name the namespace of your Prometheus in monitoring.namespace" -}}
{{- end -}}
{{- end -}}
