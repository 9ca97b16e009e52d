{{/* The settings as Sidelens gets them, as JSON: `config`, and what other values of the chart imply. A setting that
`config` names itself wins. */}}
{{- define "sidelens.config" -}}
{{- $server := dict "admin_listen" (regexReplaceAll ":[0-9]+$" .Values.config.server.listen ":7801") -}}
{{- $implied := dict "server" $server -}}
{{- if eq .Values.preset "gpu" -}}
{{- /* A pod that pays for a GPU must not compute on the CPU unseen. */ -}}
{{- $_ := set $implied "model" (dict "device" "cuda") -}}
{{- end -}}
{{- if ne .Values.modelCache.mode "image" -}}
{{- $_ := set $implied "hub" (dict "cache_dir" .Values.modelCache.mountPath) -}}
{{- end -}}
{{- if .Values.secrets.tls.existingSecret -}}
{{- $tls := .Values.secrets.tls -}}
{{- $_ := set $server "tls_cert" (print "/etc/sidelens/tls/" $tls.certKey) -}}
{{- $_ := set $server "tls_key" (print "/etc/sidelens/tls/" $tls.keyKey) -}}
{{- end -}}
{{- with .Values.secrets.apiKeys -}}
{{- if .existingSecret -}}
{{- $_ := set $implied "auth" (dict "keys_file" (print "/etc/sidelens/keys/" .key)) -}}
{{- end -}}
{{- end -}}
{{- with .Values.secrets.redisUrl -}}
{{- if .existingSecret -}}
{{- $_ := set $implied "cache" (dict "redis" (dict "url_file" (print "/etc/sidelens/redis/" .key))) -}}
{{- end -}}
{{- end -}}
{{- mergeOverwrite $implied (deepCopy .Values.config) | toJson -}}
{{- end -}}

{{/* The settings as TOML. Helm's own `toToml` writes some integers as floats, which Sidelens refuses. */}}
{{- define "sidelens.toml" -}}
{{- $config := include "sidelens.config" . | fromJson -}}
{{- range $key, $value := $config -}}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{ $key }} = {{ include "sidelens.tomlValue" $value }}
{{- end -}}
{{- end -}}
{{- range $name, $table := $config -}}
{{- if and (kindIs "map" $table) $table }}
[{{ $name }}]
{{- range $key, $value := $table -}}
{{- if not (kindIs "invalid" $value) }}
{{ include "sidelens.tomlKey" $key }} = {{ include "sidelens.tomlValue" $value }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sidelens.tomlKey" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toRawJson . }}{{ end -}}
{{- end -}}

{{/* Strings, numbers and booleans are written alike in JSON and TOML. */}}
{{- define "sidelens.tomlValue" -}}
{{- $parts := list -}}
{{- if kindIs "map" . -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $parts = append $parts (printf "%s = %s" (include "sidelens.tomlKey" $key) (include "sidelens.tomlValue" $value)) -}}
{{- end -}}
{{- end -}}
{ {{- join ", " $parts -}} }
{{- else if kindIs "slice" . -}}
{{- range . -}}
{{- $parts = append $parts (include "sidelens.tomlValue" .) -}}
{{- end -}}
[{{ join ", " $parts }}]
{{- else -}}
{{- toRawJson . -}}
{{- end -}}
{{- end -}}

{{/* The port in an address such as [::]:7800. */}}
{{- define "sidelens.portOf" -}}
{{- regexFind "[0-9]+$" (toString .) -}}
{{- end -}}

{{/* The port that a URL leads to; nothing for none. */}}
{{- define "sidelens.urlPort" -}}
{{- $port := include "sidelens.portOf" (regexFind "^[a-z]+://([^/?#@]*@)?(\\[[^]]*\\]|[^/?#:]*):[0-9]+" .) -}}
{{- $of := dict "http" "80" "https" "443" "redis" "6379" "rediss" "6379" -}}
{{- default (get $of (splitList "://" . | first)) $port -}}
{{- end -}}

{{- define "sidelens.port" -}}
{{- include "sidelens.portOf" .Values.config.server.listen -}}
{{- end -}}

{{/* The port of the listener for probes, metrics and administration; nothing where that is the main one. */}}
{{- define "sidelens.adminPort" -}}
{{- with (include "sidelens.config" . | fromJson).server.admin_listen }}{{ include "sidelens.portOf" . }}{{ end -}}
{{- end -}}

{{/* The name of the port that probes and scrapers ask. */}}
{{- define "sidelens.adminPortName" -}}
{{- ternary "admin" "http" (ne (include "sidelens.adminPort" .) "") -}}
{{- end -}}

{{/* http or https. */}}
{{- define "sidelens.scheme" -}}
{{- $server := (include "sidelens.config" . | fromJson).server -}}
{{- ternary "https" "http" (ne (default "" $server.tls_cert) "") -}}
{{- end -}}

{{/* Where the service is found inside the cluster. */}}
{{- define "sidelens.serviceUrl" -}}
{{- printf "%s://%s.%s.svc:%d" (include "sidelens.scheme" .) (include "sidelens.fullname" .) .Release.Namespace (int .Values.service.port) -}}
{{- end -}}

{{/* Where Meilisearch finds it. */}}
{{- define "sidelens.url" -}}
{{- default (include "sidelens.serviceUrl" .) (trimSuffix "/" .Values.meilisearch.url) -}}
{{- end -}}

{{/* Models of the hub that the settings name, each once, as a JSON list. A name is org/name[@revision]; anything with
another slash, or none, is a directory. */}}
{{- define "sidelens.hubModels" -}}
{{- $sources := list -}}
{{- range concat (list (default dict .Values.config.model)) (default list .Values.config.models) -}}
{{- $sources = concat $sources (list .source .image .text) -}}
{{- end -}}
{{- $names := list -}}
{{- range compact $sources -}}
{{- if regexMatch "^[A-Za-z0-9_][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*(@.+)?$" . -}}
{{- $names = append $names . -}}
{{- end -}}
{{- end -}}
{{- uniq $names | toJson -}}
{{- end -}}

{{/* "true" where the models are downloaded before the service starts. */}}
{{- define "sidelens.downloads" -}}
{{- $cache := .Values.modelCache -}}
{{- $offline := dig "hub" "offline" false .Values.config -}}
{{- $models := include "sidelens.hubModels" . | fromJsonArray -}}
{{- if and (ne $cache.mode "image") $cache.download (not $cache.readOnly) (not $offline) $models }}true{{ end -}}
{{- end -}}

{{/* "true" where Redis is in use. */}}
{{- define "sidelens.usesRedis" -}}
{{- $redis := (include "sidelens.config" . | fromJson | dig "cache" "redis" dict) -}}
{{- if or $redis.url $redis.url_file }}true{{ end -}}
{{- end -}}

{{/* "true" where callers need a key. */}}
{{- define "sidelens.asksForKeys" -}}
{{- if or .Values.secrets.apiKeys.existingSecret (dig "auth" "keys_file" "" .Values.config) }}true{{ end -}}
{{- end -}}
