{{/* SeaweedFS, hardened as services/fedlearn/local/seaweed.py does it: only the S3 port is left to knock at. */}}

{{/* What each role may do. Nobody is an administrator: the buckets are made through the store's own gRPC, in its own pod. */}}
{{- define "fedlearn.seaweedfs.identities" -}}
{{- $server := include "fedlearn.secrets" (list $ "storage-server") | fromJson -}}
{{- $aggregator := include "fedlearn.secrets" (list $ "storage-aggregator") | fromJson -}}
{{- $models := $.Values.objectStore.buckets.models -}}
{{- $actions := list (printf "Read:%s" $models) (printf "List:%s" $models) -}}
{{- $all := list -}}
{{- range $bucket := list $models $.Values.objectStore.buckets.updates -}}
{{- range list "Read" "Write" "List" }}{{ $all = append $all (printf "%s:%s" . $bucket) }}{{ end -}}
{{- end -}}
{{- $keys := dict "accessKey" $server.access_key "secretKey" $server.secret_key -}}
{{- $reader := dict "name" "server" "credentials" (list $keys) "actions" $actions -}}
{{- $keys = dict "accessKey" $aggregator.access_key "secretKey" $aggregator.secret_key -}}
{{- $writer := dict "name" "aggregator" "credentials" (list $keys) "actions" $all -}}
{{- dict "identities" (list $reader $writer) | toPrettyJson -}}
{{- end -}}

{{/* security.toml: a client certificate for gRPC, master and filer; a signed token for each object in the volumes. Takes the seed. */}}
{{- define "fedlearn.seaweedfs.security" -}}
{{- $place := "/etc/seaweedfs" -}}
[grpc]
ca = "{{ $place }}/ca.pem"
{{- range list "grpc.master" "grpc.volume" "grpc.filer" "grpc.s3" "grpc.client" "https.master" "https.filer" }}
[{{ . }}]
cert = "{{ $place }}/node.pem"
key = "{{ $place }}/node-key.pem"
{{- if hasPrefix "https" . }}
ca = "{{ $place }}/ca.pem"
{{- end }}
{{- end }}
{{- $seed := . }}
{{- range list "signing" "signing.read" "filer_signing" "filer_signing.read" }}
[jwt.{{ . }}]
key = "{{ printf "%s/%s" $seed . | sha256sum }}"
{{- end }}
[access]
ui = false
[filer.expose_directory_metadata]
enabled = false
{{ end -}}

{{/* master.toml: no housekeeping meant for clusters; two volumes a bucket, so that two cores can write at once. */}}
{{- define "fedlearn.seaweedfs.master" -}}
[master.maintenance]
scripts = ""
[master.volume_growth]
copy_1 = 2
{{ end -}}

{{/* filer.toml: where names are kept. */}}
{{- define "fedlearn.seaweedfs.filer" -}}
[leveldb2]
enabled = true
dir = "/data/names"
{{ end -}}

{{/* Its arguments. All but the S3 port is bound to the loopback interface, which no other pod shares. */}}
{{- define "fedlearn.seaweedfs.arguments" -}}
- -logtostderr=true
- server
- -dir=/data
- -master.dir=/master
- -ip=127.0.0.1
- -ip.bind=127.0.0.1
- -disableHttp=true
- -s3=true
- -s3.config=/etc/seaweedfs/identities.json
- -s3.ip.bind=0.0.0.0
- -s3.iam=false
- -s3.port=8333
- -s3.port.grpc=18333
- -s3.port.iceberg=0
- -s3.port.lance=0
- -s3.localSocket=/tmp/s3.sock
- -s3.autoCreateBucket=false
# an upload takes several times its size in memory; more at once than keep the cores busy only wait inside
- -s3.concurrentUploadLimitMB=32
- -filer.port=8888
- -filer.port.grpc=18888
- -filer.localSocket=/tmp/filer.sock
# twice as many chunks of a model are on their way at once; most updates are one all the same
- -filer.maxMB=2
- -filer.disableHttp=true
- -master.port=9333
- -master.port.grpc=19333
# the only master: it need not wait to be elected, nor for volumes that other machines might still announce
- -master.peers=none
- -master.resumeState=false
- -master.telemetry=false
- -master.electionTimeout=1s
- -master.heartbeatInterval=100ms
# a round's updates are deleted when it ends: give their space back soon
- -master.vacuumIntervalSeconds=30
- -master.garbageThreshold=0.1
- -master.volumeSizeLimitMB=1024
- -volume.port=8080
- -volume.port.grpc=18080
- -volume.max=100
- -volume.minFreeSpace=256MiB
- -volume.preStopSeconds=0
{{- end -}}
