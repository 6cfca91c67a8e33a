{{- define "r2m.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "r2m.fullname" -}}
{{- $name := include "r2m.name" . -}}
{{- $whole := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- /* 52: the longest ending that is added fits. */ -}}
{{- default $whole .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "r2m.selector" -}}
app.kubernetes.io/name: {{ include "r2m.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "r2m.labels" -}}
{{ include "r2m.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "r2m.image" -}}
{{- $tag := default (printf "%s%s" .Chart.AppVersion (ternary "-cuda" "" .Values.gpu.enabled)) .Values.image.tag -}}
{{- printf "%s:%s" .Values.image.repository $tag -}}
{{- with .Values.image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "r2m.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "r2m.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "r2m.keysSecret" -}}
{{- default (printf "%s-keys" (include "r2m.fullname" .)) .Values.keys.existingSecret -}}
{{- end -}}

{{- define "r2m.tlsSecret" -}}
{{- default (printf "%s-tls" (include "r2m.fullname" .)) .Values.tls.existingSecret -}}
{{- end -}}

{{- define "r2m.url" -}}
{{- printf "%s://%s.%s.svc:%d" (ternary "https" "http" .Values.tls.enabled) (include "r2m.fullname" .) .Release.Namespace (int .Values.service.httpPort) -}}
{{- end -}}

{{- /* Whether several servers may work on the registry. */ -}}
{{- define "r2m.shared" -}}
{{- if .Values.registry.database.existingSecret -}}true{{- end -}}
{{- end -}}

{{- /* Numbers of values are floats here, and 1073741824 would be written 1.073741824e+09. */ -}}
{{- define "r2m.plain" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{- /* The server drains gRPC, then HTTP, each so long at most; then it closes. */ -}}
{{- define "r2m.grace" -}}
{{- add (int .Values.preStopSeconds) (mul 2 (int (ceil (float64 .Values.settings.drain_seconds)))) 15 -}}
{{- end -}}

{{- define "r2m.startupPeriod" -}}5{{- end -}}

{{- /* Failures that the startup probe allows: enough of its periods for all of its seconds. */ -}}
{{- define "r2m.startupFailures" -}}
{{- $period := include "r2m.startupPeriod" . | int -}}
{{- div (add (int .Values.probes.startup.seconds) (sub $period 1)) $period -}}
{{- end -}}

{{- /* A model that loads slowly is no failed rollout: what the startup probe allows, and 600 s, which
       is Kubernetes' default, for scheduling, images, volumes and init containers, and 15 s for the
       probe's own answers. */ -}}
{{- define "r2m.progressDeadline" -}}
{{- add (mul (include "r2m.startupFailures" . | int) (include "r2m.startupPeriod" . | int)) 600 15 -}}
{{- end -}}

{{- /* The Service with the port of metrics. A Service that is open to the outside does not have it. */ -}}
{{- define "r2m.opsService" -}}
{{- printf "%s%s" (include "r2m.fullname" .) (ternary "" "-ops" (eq .Values.service.type "ClusterIP")) -}}
{{- end -}}

{{- define "r2m.headlessService" -}}
{{- include "r2m.fullname" . -}}-headless
{{- end -}}

{{- /* How long samples of scores wait, 99 of 100; the metric's names stand here alone. `service` is
       the label that Prometheus' operator sets: the Service whose port it scrapes. */ -}}
{{- define "r2m.queueQuery" -}}
{{- $of := printf "namespace=%q,service=%q,stage=\"queue\",method=~\"score|stream_sample\"" .Release.Namespace (include "r2m.opsService" .) -}}
{{- printf "histogram_quantile(0.99, sum by (le) (rate(r2m_request_stage_seconds_bucket{%s}[5m])))" $of -}}
{{- end -}}

{{- /* What the schema cannot say, in a sentence that names the way out. */ -}}
{{- define "r2m.check" -}}
{{- $model := .Values.model -}}
{{- $sources := compact (list $model.existingClaim $model.extraVolume $model.hub) -}}
{{- if not $sources -}}
{{- fail "there is no model: give model.existingClaim (a claim with the reward model), model.extraVolume (one of extraVolumes) or model.hub (a hub id)" -}}
{{- end -}}
{{- if gt (len $sources) 1 -}}
{{- fail "two models: give one of model.existingClaim, model.extraVolume and model.hub" -}}
{{- end -}}
{{- if and $model.hub (or $model.folder $model.head) -}}
{{- fail "model.folder and model.head name what is in the model's volume; with model.hub there is none" -}}
{{- end -}}
{{- $volumes := list -}}
{{- range .Values.extraVolumes -}}
{{- $volumes = append $volumes .name -}}
{{- end -}}
{{- if and $model.extraVolume (not (has $model.extraVolume $volumes)) -}}
{{- fail (printf "model.extraVolume %q is none of extraVolumes: add the volume there" $model.extraVolume) -}}
{{- end -}}
{{- if and .Values.caBundle.configMap .Values.caBundle.secret -}}
{{- fail "two CA bundles: give caBundle.configMap or caBundle.secret, not both" -}}
{{- end -}}
{{- $shared := and .Values.registry.database.existingSecret .Values.registry.blobs.url -}}
{{- if and (not $shared) (or .Values.registry.database.existingSecret .Values.registry.blobs.url) -}}
{{- fail "registry.database.existingSecret and registry.blobs.url belong together: give both, or neither" -}}
{{- end -}}
{{- if and (not $shared) (or (gt (int .Values.replicas) 1) (ne .Values.autoscaling.kind "none")) -}}
{{- fail "more than one replica needs a registry that they share: give registry.database.existingSecret and registry.blobs.url" -}}
{{- end -}}
{{- $cache := .Values.model.cache -}}
{{- $many := or (gt (int .Values.replicas) 1) (ne .Values.autoscaling.kind "none") -}}
{{- if and $model.hub $cache.persistence (not $cache.existingClaim) $many (not (has "ReadWriteMany" $cache.accessModes)) -}}
{{- fail "more than one replica writes to model.cache: give it ReadWriteMany in model.cache.accessModes, or set model.cache.persistence to false" -}}
{{- end -}}
{{- $claim := .Values.registry.persistence -}}
{{- if and $claim.enabled (not $shared) (not $claim.existingClaim) -}}
{{- range $claim.accessModes -}}
{{- if eq . "ReadOnlyMany" -}}
{{- fail "registry.persistence.accessModes: the registry is written to, ReadOnlyMany cannot hold it" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and .Values.tls.clientCASecret (not .Values.tls.enabled) -}}
{{- fail "tls.clientCASecret asks clients for certificates: it needs tls.enabled" -}}
{{- end -}}
{{- end -}}
