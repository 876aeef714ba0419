{{/*
Secrets: what the user gives, else what the cluster has already, else something new. docs/decisions/0010-chart-secrets.md says why
they are made here and not by a Job.

One rendering makes each of them once, whoever asks for it first: the Secret itself, or a checksum of it.
*/}}

{{/* The content of a secret as JSON. Takes (list $ "operator"). */}}
{{- define "fedlearn.secrets" -}}
{{- $ := index . 0 -}}
{{- $name := index . 1 -}}
{{- if not (hasKey $.Values "madeSecrets") }}{{ $_ := set $.Values "madeSecrets" dict }}{{ end -}}
{{- if not (hasKey $.Values.madeSecrets $name) -}}
{{- $_ := set $.Values.madeSecrets $name (include (printf "fedlearn.secrets.%s" $name) $ | fromJson) -}}
{{- end -}}
{{- index $.Values.madeSecrets $name | toJson -}}
{{- end -}}

{{/* A Secret's manifest. Takes (list $ "component" "resource's name" "content's name"). */}}
{{- define "fedlearn.secret" -}}
{{- $ := index . 0 -}}
apiVersion: v1
kind: Secret
metadata:
  {{- include "fedlearn.metadata" (list $ (index . 1) (index . 2)) | nindent 2 }}
type: Opaque
data:
  {{- range $key, $value := include "fedlearn.secrets" (list $ (index . 3)) | fromJson }}
  {{ $key }}: {{ $value | b64enc }}
  {{- end }}
{{- end -}}

{{/* What a Secret of the cluster holds, as JSON; nothing where it is not there, or nobody may look. Takes (list $ "name"). */}}
{{- define "fedlearn.secrets.found" -}}
{{- $ := index . 0 -}}
{{- $content := dict -}}
{{- range $key, $value := (lookup "v1" "Secret" $.Release.Namespace (index . 1)).data -}}
{{- $_ := set $content $key ($value | b64dec) -}}
{{- end -}}
{{- toJson $content -}}
{{- end -}}

{{- define "fedlearn.secrets.operator" -}}
{{- $found := include "fedlearn.secrets.found" (list $ (include "fedlearn.operator.secret" $)) | fromJson -}}
{{- dict "token" ($.Values.operator.token | default $found.token | default (randAlphaNum 40)) | toJson -}}
{{- end -}}

{{- define "fedlearn.secrets.database" -}}
{{- if $.Values.database.existingSecret -}}
{{- include "fedlearn.secrets.found" (list $ $.Values.database.existingSecret) -}}
{{- else -}}
{{- dict "url" $.Values.database.url | toJson -}}
{{- end -}}
{{- end -}}

{{- define "fedlearn.secrets.identity" -}}
{{- $found := include "fedlearn.secrets.found" (list $ (include "fedlearn.identity.secret" $)) | fromJson -}}
{{- $private := $.Values.aggregator.identity.privateKey | default (index $found "private.pem") -}}
{{- if and (not $private) (not $.Values.aggregator.identity.existingSecret) }}{{ $private = genPrivateKey "ed25519" }}{{ end -}}
{{- dict "private.pem" ($private | default "") | toJson -}}
{{- end -}}

{{/* What devices know the aggregator by. */}}
{{- define "fedlearn.publicKey" -}}
{{- $identity := $.Values.aggregator.identity -}}
{{- if $identity.publicKey -}}
{{- $identity.publicKey -}}
{{- else if $identity.existingSecret -}}
{{- fail "aggregator.identity.existingSecret needs aggregator.identity.publicKey, which devices know the aggregator by: openssl pkey -in private.pem -pubout" -}}
{{- else -}}
{{- include "fedlearn.publicKeyOf" (index (include "fedlearn.secrets" (list $ "identity") | fromJson) "private.pem") -}}
{{- end -}}
{{- end -}}

{{/*
The public half of an Ed25519 key in PEM (RFC 8410). No function here derives it, but a certificate that the key signs for itself
holds it: 32 bytes after a SubjectPublicKeyInfo's fixed first 12, which are all that is looked for.
*/}}
{{- define "fedlearn.publicKeyOf" -}}
{{- $certificate := genSelfSignedCertWithKey "fedlearn" list list 1 . -}}
{{- $der := regexReplaceAll "-----[A-Z ]+-----|\\s" $certificate.Cert "" | b64dec -}}
{{- $head := "\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00" -}}
{{- $tail := (splitn $head 2 $der)._1 -}}
{{- if not $tail }}{{ fail "aggregator.identity.privateKey must be an Ed25519 key in PEM: openssl genpkey -algorithm ed25519" }}{{ end -}}
-----BEGIN PUBLIC KEY-----
{{ print $head (substr 0 32 $tail) | b64enc }}
-----END PUBLIC KEY-----
{{- end -}}

{{- define "fedlearn.secrets.storage-server" -}}{{ include "fedlearn.secrets.role" (list $ "server") }}{{- end -}}
{{- define "fedlearn.secrets.storage-aggregator" -}}{{ include "fedlearn.secrets.role" (list $ "aggregator") }}{{- end -}}

{{- define "fedlearn.secrets.role" -}}
{{- $ := index . 0 -}}
{{- $role := index . 1 -}}
{{- $given := index $.Values.objectStore $role -}}
{{- $found := include "fedlearn.secrets.found" (list $ (include (printf "fedlearn.storage.%sSecret" $role) $)) | fromJson -}}
{{- $access := $given.accessKey | default $found.access_key | default (printf "%s-%s" $role (randAlphaNum 16)) -}}
{{- $secret := $given.secretKey | default $found.secret_key | default (randAlphaNum 40) -}}
{{- dict "access_key" $access "secret_key" $secret | toJson -}}
{{- end -}}

{{/* All that SeaweedFS reads: identities and their rights, certificates for what it says to itself, keys for its tokens. */}}
{{- define "fedlearn.secrets.storage" -}}
{{- $found := include "fedlearn.secrets.found" (list $ (include "fedlearn.storage.secret" $)) | fromJson -}}
{{- if $.Values.objectStore.seaweedfs.existingSecret -}}
{{- toJson $found -}}
{{- else -}}
{{- $content := pick $found "ca.pem" "node.pem" "node-key.pem" "seed" -}}
{{- if not (hasKey $content "seed") -}}
{{- /* the authority's key is thrown away: it signs this one certificate, which both ends of every connection show */ -}}
{{- $authority := genCAWithKey "fedlearn storage authority" 3650 (genPrivateKey "ecdsa") -}}
{{- $node := genSignedCertWithKey "fedlearn storage" (list "127.0.0.1") list 3650 $authority (genPrivateKey "ecdsa") -}}
{{- $content = dict "ca.pem" $authority.Cert "node.pem" $node.Cert "node-key.pem" $node.Key "seed" (randAlphaNum 40) -}}
{{- end -}}
{{- $_ := set $content "identities.json" (include "fedlearn.seaweedfs.identities" $) -}}
{{- $_ := set $content "security.toml" (include "fedlearn.seaweedfs.security" $content.seed) -}}
{{- $_ := set $content "master.toml" (include "fedlearn.seaweedfs.master" $) -}}
{{- $_ := set $content "filer.toml" (include "fedlearn.seaweedfs.filer" $) -}}
{{- toJson $content -}}
{{- end -}}
{{- end -}}
