{{/* The chart's name, or what replaces it. */}}
{{- define "sidelens.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of the objects. Shortened to leave room for suffixes and the two hashes of a pod's name. */}}
{{- define "sidelens.fullname" -}}
{{- $name := include "sidelens.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- end -}}

{{- define "sidelens.serviceAccountName" -}}
{{- default (ternary (include "sidelens.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{/* What all pods of the release have in common; a Service adds the component. */}}
{{- define "sidelens.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sidelens.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sidelens.labels" -}}
{{ include "sidelens.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: meilisearch
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* Metadata of an object, from a dict of `root`, and at will `name`, `suffix`, `labels` and `annotations`. */}}
{{- define "sidelens.metadata" -}}
name: {{ default (include "sidelens.fullname" .root) .name }}{{ .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "sidelens.labels" .root | nindent 2 }}
  {{- with merge (dict) (.labels | default dict) .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The values of the chosen preset, as JSON. */}}
{{- define "sidelens.preset" -}}
{{- index .Values.presets .Values.preset | toJson -}}
{{- end -}}

{{- define "sidelens.image" -}}
{{- $image := .Values.image -}}
{{- $suffix := (include "sidelens.preset" . | fromJson).imageTagSuffix -}}
{{- $tag := default (print .Chart.AppVersion $suffix) $image.tag -}}
{{- $image.repository -}}{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $tag }}{{ end -}}
{{- end -}}

{{/* A word of a shell command, whatever stands in it. */}}
{{- define "sidelens.shellQuote" -}}
{{- printf "'%s'" (replace "'" "'\\''" .) -}}
{{- end -}}
