{{/* One endpoint of a ServiceMonitor or PodMonitor. */}}
{{- define "sidelens.endpoint" -}}
port: {{ include "sidelens.adminPortName" . }}
path: /metrics
{{- if eq (include "sidelens.scheme" .) "https" }}
scheme: https
{{- end }}
interval: {{ .Values.metrics.interval }}
scrapeTimeout: {{ .Values.metrics.scrapeTimeout }}
{{- with .Values.metrics.tlsConfig }}
tlsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.metrics.relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.metrics.metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* "true" where somebody reads the metrics. */}}
{{- define "sidelens.isScraped" -}}
{{- with .Values.metrics -}}
{{- if or .serviceMonitor.enabled .podMonitor.enabled .scrapedOtherwise }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/* The series of this release's pods. The pattern is that of a Deployment's pods, so that a release named `a` does
not count those of `a-b`. */}}
{{- define "sidelens.seriesSelector" -}}
{{- $own := printf "namespace=%q,pod=~%q" .Release.Namespace (print (include "sidelens.fullname" .) "-[a-z0-9]+-[a-z0-9]{5}") -}}
{{- default $own .Values.autoscaling.selector -}}
{{- end -}}

{{/* Items in the system of all replicas, by Little's law: a rate of seconds spent, per second, is the number of those
who spend them. Waits and passes are counted for each input. One element. Nothing, not zero, where there are no series:
then the fallback holds. */}}
{{- define "sidelens.itemsInSystem" -}}
{{- $own := include "sidelens.seriesSelector" . -}}
sum(rate(sidelens_queue_wait_seconds_sum{ {{- $own -}} }[1m]))
+ sum(rate(sidelens_input_compute_seconds_total{ {{- $own -}} }[1m]))
{{- end -}}

{{- define "sidelens.itemsPerReplica" -}}
{{- $preset := include "sidelens.preset" . | fromJson -}}
{{- if .Values.autoscaling.itemsPerReplica -}}
{{- .Values.autoscaling.itemsPerReplica -}}
{{- else if eq .Values.preset "gpu" -}}
{{- mulf $preset.itemsPerGpu (index (include "sidelens.resources" . | fromJson).limits $preset.resourceName) -}}
{{- else -}}
{{- mulf $preset.itemsPerCore (include "sidelens.cores" .) -}}
{{- end -}}
{{- end -}}

{{/* Requests a second that were refused for lack of room, over all replicas: what `sidelens:requests_shed:rate1m` records. */}}
{{- define "sidelens.shedRate" -}}
sum(rate(sidelens_refused_requests_total{ {{- include "sidelens.seriesSelector" . }},reason=~"queue_full|deadline|body_room"}[1m]))
{{- end -}}
