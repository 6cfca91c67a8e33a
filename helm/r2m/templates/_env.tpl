{{- /* The server's settings as variables: those that the chart decides (OWNED in helm/generate.py),
       then those of .Values.settings. */ -}}
{{- define "r2m.env" -}}
{{- $values := .Values -}}
- {name: R2M_HTTP, value: "0.0.0.0:8080"}
- {name: R2M_GRPC, value: "0.0.0.0:50051"}
- {name: R2M_OPS, value: "0.0.0.0:9090"}
- {name: R2M_STATE, value: /state}
- name: R2M_MODEL
  value: {{ if $values.model.hub }}{{ $values.model.hub | quote }}{{ else }}{{ printf "/model/%s" $values.model.folder | trimSuffix "/" | quote }}{{ end }}
{{- with $values.model.head }}
- name: R2M_HEAD
  value: {{ printf "/model/%s" . | quote }}
{{- end }}
- name: R2M_DEVICE
  value: {{ ternary "cuda" "cpu" $values.gpu.enabled }}
{{- if $values.keys.enabled }}
- {name: R2M_KEYS, value: /etc/r2m/keys/keys.json}
{{- else }}
- {name: R2M_INSECURE, value: "true"}
{{- end }}
{{- if $values.tls.enabled }}
- {name: R2M_TLS_CERT, value: /etc/r2m/tls/tls.crt}
- {name: R2M_TLS_KEY, value: /etc/r2m/tls/tls.key}
{{- if $values.tls.clientCASecret }}
- {name: R2M_TLS_CLIENT_CA, value: /etc/r2m/client-ca/ca.crt}
{{- end }}
{{- end }}
{{- with $values.registry.database.existingSecret }}
- name: R2M_REGISTRY
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $values.registry.database.key }}
{{- end }}
{{- with $values.registry.blobs.url }}
- name: R2M_BLOBS
  value: {{ . | quote }}
{{- end }}
{{- with $values.registry.blobs.endpoint }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with $values.registry.blobs.existingSecret }}
{{- range $name := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $values.registry.blobs.existingSecret }}
      key: {{ $name }}
{{- end }}
{{- end }}
{{- if $values.model.hub }}
- {name: HF_HOME, value: /cache}
{{- with $values.model.hubTokenSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: token
{{- end }}
{{- else }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- if or $values.caBundle.configMap $values.caBundle.secret }}
{{- /* Python and OpenSSL (the hub), requests (OTLP), S3's clients, libpq. */}}
{{- range list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" "AWS_CA_BUNDLE" "PGSSLROOTCERT" }}
- {name: {{ . }}, value: /etc/r2m/ca/bundle.pem}
{{- end }}
{{- end }}
{{- range $name, $value := $values.settings }}
- name: {{ printf "R2M_%s" (upper $name) }}
  value: {{ include "r2m.plain" $value | quote }}
{{- end }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
