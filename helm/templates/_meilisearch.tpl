{{/* "true" where the model may be named outside of `config`: by a variable, an argument, or what is not known here. */}}
{{- define "sidelens.namesModelElsewhere" -}}
{{- $given := join " " .Values.extraArgs -}}
{{- range .Values.extraEnv }}{{ $given = print $given " " .name }}{{ end -}}
{{- if or .Values.extraEnvFrom (regexMatch "(?i)model|--config" $given) }}true{{ end -}}
{{- end -}}

{{/* The way from a document to a field, as a regular expression: names behind dots, and numbers or quoted names in brackets. */}}
{{- define "sidelens.steps" -}}
(\.[A-Za-z_][A-Za-z0-9_-]*|\[([0-9]+|"[^"]*"|'[^']*')\])+
{{- end -}}

{{/* The template of a picture's address, of a field or a template. It fails on purpose where a field that stands plainly in it
is null or empty. */}}
{{- define "sidelens.pictureTemplate" -}}
{{- $template := ternary . (printf "{{doc.%s}}" .) (contains "{{" .) -}}
{{- if not (contains "{%" $template) -}}
{{- $fields := list -}}
{{- range regexFindAll (printf "\\{\\{\\s*doc%s\\s*\\}\\}" (include "sidelens.steps" .)) $template -1 -}}
{{- $fields = append $fields (regexReplaceAll "^\\{\\{\\s*|\\s*\\}\\}$" . "") -}}
{{- end -}}
{{- range uniq $fields }}{{ printf "{%% if %s == blank %%}{{ doc.no_such_field }}{%% endif %%}" . }}{{ end -}}
{{- end -}}
{{- $template -}}
{{- end -}}

{{/* The settings of a Meilisearch index as `sidelens settings` prints them, as JSON; nothing where the model's name or
dimensions are unknown here. */}}
{{- define "sidelens.indexSettings" -}}
{{- $m := .Values.meilisearch -}}
{{- $model := default dict .Values.config.model -}}
{{- $elsewhere := include "sidelens.namesModelElsewhere" . -}}
{{- $isDemo := and (not $elsewhere) (eq (default "demo" $model.source) "demo") (not $model.image) (not .Values.config.models) -}}
{{- $name := default (ternary (default "sidelens-demo" $model.name) "" $isDemo) $m.model -}}
{{- $dimensions := default (ternary 128 0 $isDemo) $m.dimensions -}}
{{- if and $name $dimensions (or $m.imageField $m.textTemplate) -}}
{{- $settings := dict "source" "rest" "url" (print (include "sidelens.url" .) "/embed") "dimensions" (int $dimensions) -}}
{{- $_ := set $settings "response" (dict "data" (list (dict "embedding" "{{embedding}}") "{{..}}")) -}}
{{- if include "sidelens.asksForKeys" . -}}
{{- $_ := set $settings "apiKey" "YOUR_KEY" -}}
{{- end -}}
{{- if $m.imageField -}}
{{- $parts := list -}}
{{- if $m.textTemplate -}}
{{- $parts = append $parts (dict "type" "text" "text" $m.textTemplate) -}}
{{- end -}}
{{- $parts = append $parts (dict "type" "image_url" "image_url" (include "sidelens.pictureTemplate" $m.imageField)) -}}
{{- $document := dict "content" $parts -}}
{{- if $m.textTemplate -}}
{{- $_ := set $document "input_type" "document" -}}
{{- end -}}
{{- $fragment := dict "document" (dict "value" $document) -}}
{{- $text := dict "type" "text" "text" "{% if media %}{{ media.no_such_field }}{% endif %}{{q}}" -}}
{{- $image := dict "type" "image_base64" "image_base64" "data:{{media.image.mime}};base64,{{media.image.data}}" -}}
{{- $url := dict "type" "image_url" "image_url" "{% if media.image %}{{ media.no_such_field }}{% endif %}{{media.url}}" -}}
{{- $search := dict -}}
{{- range $key, $part := dict "text" $text "image" $image "url" $url -}}
{{- $_ := set $search $key (dict "value" (dict "input_type" "query" "content" (list $part))) -}}
{{- end -}}
{{- $_ := set $settings "indexingFragments" $fragment -}}
{{- $_ := set $settings "searchFragments" $search -}}
{{- $_ := set $settings "request" (dict "model" $name "inputs" (list "{{fragment}}" "{{..}}")) -}}
{{- else -}}
{{- $_ := set $settings "documentTemplate" $m.textTemplate -}}
{{- $_ := set $settings "request" (dict "model" $name "input" (list "{{text}}" "{{..}}")) -}}
{{- end -}}
{{- dict "embedders" (dict $m.embedder $settings) | toJson -}}
{{- end -}}
{{- end -}}

{{/* Networks to open in Meilisearch: the Service's address where it is known, else every private network. */}}
{{- define "sidelens.allowedNetworks" -}}
{{- $service := lookup "v1" "Service" .Release.Namespace (include "sidelens.fullname" .) | default dict -}}
{{- $address := default (dig "spec" "clusterIP" "" $service) .Values.service.clusterIP -}}
{{- if or (not $address) (eq $address "None") -}}
10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,fc00::/7
{{- else -}}
{{ $address }}/{{ ternary 128 32 (contains ":" $address) }}
{{- end -}}
{{- end -}}
