{{/* "true" where the models' volume allows pods on one node only. */}}
{{- define "sidelens.isExclusive" -}}
{{- $cache := .Values.modelCache -}}
{{- $shared := or (has "ReadWriteMany" $cache.accessModes) (has "ReadOnlyMany" $cache.accessModes) -}}
{{- if and (has $cache.mode (list "claim" "existingClaim")) (not $shared) }}true{{ end -}}
{{- end -}}

{{/* The volumes that the service's container mounts, as JSON: their directories, whether it may write there, and whether they
are on a claim. */}}
{{- define "sidelens.mounts" -}}
{{- $claims := list -}}
{{- range .Values.extraVolumes -}}
{{- if .persistentVolumeClaim }}{{ $claims = append $claims .name }}{{ end -}}
{{- end -}}
{{- $mounts := list (dict "path" "/tmp/" "writable" true) -}}
{{- with .Values.modelCache -}}
{{- if ne .mode "image" -}}
{{- $mounts = append $mounts (dict "path" (print (trimSuffix "/" .mountPath) "/") "writable" (not .readOnly) "claim" (ne .mode "emptyDir")) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraVolumeMounts -}}
{{- $mounts = append $mounts (dict "path" (print (trimSuffix "/" .mountPath) "/") "writable" (not .readOnly) "claim" (has .name $claims)) -}}
{{- end -}}
{{- toJson $mounts -}}
{{- end -}}

{{/* "true" where the file of cached vectors is on a claim, for the next pod to read. */}}
{{- define "sidelens.keepsCacheFile" -}}
{{- $file := dig "cache" "file" "" .Values.config -}}
{{- $on := dict -}}
{{- range include "sidelens.mounts" . | fromJsonArray -}}
{{- if and .writable (hasPrefix .path $file) }}{{ $on = . }}{{ end -}}
{{- end -}}
{{- if $on.claim }}true{{ end -}}
{{- end -}}

{{- define "sidelens.claimName" -}}
{{- default (printf "%s-models" (include "sidelens.fullname" .)) .Values.modelCache.existingClaim -}}
{{- end -}}

{{- define "sidelens.strategy" -}}
{{- $preset := include "sidelens.preset" . | fromJson -}}
{{- if .Values.strategy -}}
{{- toYaml .Values.strategy -}}
{{- else if include "sidelens.keepsCacheFile" . -}}
{{- /* The old pod writes the file when it stops; anything but this starts the next one before that, which then reads the
file of the start before. */ -}}
type: Recreate
{{- else if include "sidelens.isExclusive" . -}}
{{- toYaml (dict "type" "RollingUpdate" "rollingUpdate" (dict "maxSurge" 0 "maxUnavailable" 1)) -}}
{{- else -}}
{{- toYaml $preset.strategy -}}
{{- end -}}
{{- end -}}

{{/* Metadata of a pod, from a dict of `root` and `component`. */}}
{{- define "sidelens.podMetadata" -}}
labels:
  # Not the chart's version: a chart that changes nothing here must not restart a pod.
  {{- include "sidelens.selectorLabels" .root | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/component: {{ .component }}
  {{- with merge (dict) .root.Values.podLabels .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  # Sidelens reads its configuration at the start only.
  checksum/config: {{ include "sidelens.toml" .root | sha256sum }}
  {{- with .root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* What all pods that run Sidelens have in common, but for containers and volumes. */}}
{{- define "sidelens.podSettings" -}}
{{- $preset := include "sidelens.preset" . | fromJson -}}
serviceAccountName: {{ include "sidelens.serviceAccountName" . }}
automountServiceAccountToken: false
# Variables such as SIDELENS_SEARCH_PORT, after other Services, would be taken for settings.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with default $preset.runtimeClassName .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "sidelens.initContainers" -}}
{{- if or .Values.initContainers (include "sidelens.downloads" .) }}
initContainers:
  {{- with .Values.initContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- if include "sidelens.downloads" . }}
  {{- include "sidelens.downloadContainers" . | trim | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* The nodes that pods may run on. */}}
{{- define "sidelens.placement" -}}
{{- $preset := include "sidelens.preset" . | fromJson -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "sidelens.affinity" . | fromJson }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $preset.tolerations .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Requests and limits of the service, as JSON. */}}
{{- define "sidelens.resources" -}}
{{- $preset := include "sidelens.preset" . | fromJson -}}
{{- $resources := deepCopy (default $preset.resources .Values.resources) -}}
{{- if eq .Values.preset "gpu" -}}
{{- $gpu := dict $preset.resourceName (int $preset.count) -}}
{{- $_ := set $resources "limits" (merge (default dict $resources.limits) $gpu) -}}
{{- end -}}
{{- toJson $resources -}}
{{- end -}}

{{/* Whose CPUs count: limits.cpu, or else requests.cpu, or nothing where neither is given. */}}
{{- define "sidelens.cpuSource" -}}
{{- $resources := include "sidelens.resources" . | fromJson -}}
{{- if dig "limits" "cpu" "" $resources }}limits.cpu{{ else if dig "requests" "cpu" "" $resources }}requests.cpu{{ end -}}
{{- end -}}

{{/* The cores that compute, as a whole number: 250m are one, as for the threads. Two where nothing tells. */}}
{{- define "sidelens.cores" -}}
{{- $threads := dig "model" "threads" 0 .Values.config | int -}}
{{- $cpus := "2" -}}
{{- with include "sidelens.cpuSource" . -}}
{{- $cpus = dig (splitList "." . | first) "cpu" "" (include "sidelens.resources" $ | fromJson) | toString -}}
{{- end -}}
{{- $cores := ternary (divf (trimSuffix "m" $cpus) 1000) (float64 $cpus) (hasSuffix "m" $cpus) | ceil | int -}}
{{- default $cores $threads -}}
{{- end -}}

{{/* Seconds that a stop may take. Sidelens itself gives up `shutdown_timeout_s` and 5 seconds after SIGTERM. */}}
{{- define "sidelens.graceSeconds" -}}
{{- $stop := add .Values.preStopSleepSeconds .Values.config.server.shutdown_timeout_s -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds }}{{ add $stop 10 }}{{ else }}{{ int .Values.terminationGracePeriodSeconds }}{{ end -}}
{{- end -}}

{{/* Kubernetes 1.30 sleeps itself; before, the image's `sleep` does. */}}
{{- define "sidelens.preStop" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version -}}
sleep:
  seconds: {{ .Values.preStopSleepSeconds }}
{{- else -}}
exec:
  command: [sleep, {{ .Values.preStopSleepSeconds | quote }}]
{{- end -}}
{{- end -}}

{{/* A container's environment: a list of its own as YAML, `own`, and `extraEnv`. A variable given there replaces the
chart's, since a name listed twice is refused by server-side apply. */}}
{{- define "sidelens.env" -}}
{{- $given := list -}}
{{- range .root.Values.extraEnv }}{{ $given = append $given .name }}{{ end -}}
{{- $env := list -}}
{{- range concat (include "sidelens.commonEnv" .root | fromYamlArray) (default "" .own | fromYamlArray) -}}
{{- if not (has .name $given) }}{{ $env = append $env . }}{{ end -}}
{{- end -}}
{{- concat $env .root.Values.extraEnv | toYaml -}}
{{- end -}}

{{/* Variables of every container that runs Sidelens. */}}
{{- define "sidelens.commonEnv" -}}
{{- /* Libraries that cache below the home directory find a place that can be written. */ -}}
- name: HOME
  value: /tmp
{{- if .Values.secrets.hubToken.existingSecret }}
- name: HF_TOKEN_PATH
  value: /etc/sidelens/hub-token/{{ .Values.secrets.hubToken.key }}
{{- end }}
{{- end -}}

{{/* Variables of the service alone. */}}
{{- define "sidelens.serverEnv" -}}
{{- if or (include "sidelens.downloads" .) (and .Values.modelCache.readOnly (ne .Values.modelCache.mode "image")) }}
{{- /* It serves what the init containers checked, and starts without the hub. */}}
- name: SIDELENS_HUB__OFFLINE
  value: "true"
{{- end }}
{{- $source := include "sidelens.cpuSource" . -}}
{{- if and .Values.threadsFromCpu $source -}}
{{- $config := .Values.config -}}
{{- range $path := list (list "model" "threads") (list "image" "threads") (list "server" "workers") -}}
{{- if not (hasKey (default dict (get $config (first $path))) (last $path)) }}
- name: SIDELENS_{{ join "__" $path | upper }}
  valueFrom:
    resourceFieldRef:
      containerName: sidelens
      resource: {{ $source }}
      # Rounds up.
      divisor: "1"
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Sources of variables: the Secret with settings, and `extraEnvFrom`. */}}
{{- define "sidelens.envFrom" -}}
{{- $settings := .Values.secrets.settings.existingSecret -}}
{{- concat (ternary (list (dict "secretRef" (dict "name" $settings))) list (ne $settings "")) .Values.extraEnvFrom | toYaml -}}
{{- end -}}

{{/* The names of the volumes of `secrets`. */}}
{{- define "sidelens.secretVolumes" -}}
{{- dict "hubToken" "hub-token" "apiKeys" "keys" "redisUrl" "redis" "tls" "tls" | toJson -}}
{{- end -}}

{{/* Mounts of Secrets at /etc/sidelens, from a dict of `root` and their keys in `secrets`. */}}
{{- define "sidelens.secretMounts" -}}
{{- range $key := .secrets }}
{{- if (index $.root.Values.secrets $key).existingSecret }}
{{- $name := index (include "sidelens.secretVolumes" $ | fromJson) $key }}
# The whole directory: a file mounted by `subPath` would never change.
- name: {{ $name }}
  mountPath: /etc/sidelens/{{ $name }}
  readOnly: true
{{- end }}
{{- end }}
{{- end -}}

{{- define "sidelens.volumeMounts" -}}
- name: config
  mountPath: /etc/sidelens/config
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- if ne .Values.modelCache.mode "image" }}
- name: models
  mountPath: {{ .Values.modelCache.mountPath }}
  {{- with .Values.modelCache.subPath }}
  subPath: {{ . }}
  {{- end }}
  {{- if .Values.modelCache.readOnly }}
  readOnly: true
  {{- end }}
{{- end }}
{{- if .Values.secrets.hubToken.existingSecret }}
- name: hub-token
  mountPath: /etc/sidelens/hub-token
  readOnly: true
{{- end }}
{{- end -}}

{{/* A pod's volumes, from a dict of `root` and the keys of `secrets` that it mounts. */}}
{{- define "sidelens.volumes" -}}
{{- $values := .root.Values -}}
- name: config
  configMap:
    name: {{ include "sidelens.fullname" .root }}
- name: tmp
  emptyDir:
    sizeLimit: {{ $values.tmpSizeLimit }}
{{- with $values.modelCache }}
{{- if eq .mode "emptyDir" }}
- name: models
  emptyDir:
    sizeLimit: {{ .size }}
{{- else if ne .mode "image" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ include "sidelens.claimName" $.root }}
    {{- if .readOnly }}
    readOnly: true
    {{- end }}
{{- end }}
{{- end }}
{{- $names := include "sidelens.secretVolumes" $ | fromJson -}}
{{- range $key := .secrets }}
{{- $secret := index $values.secrets $key }}
{{- if $secret.existingSecret }}
- name: {{ index $names $key }}
  secret:
    secretName: {{ $secret.existingSecret }}
    # Readable by the pod's group, which is `fsGroup`.
    defaultMode: 0440
{{- end }}
{{- end }}
{{- with $values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* One init container per model and command, as there is no shell to run several. */}}
{{- define "sidelens.downloadContainers" -}}
{{- $commands := ternary (list "download" "verify") (list "download") .Values.modelCache.verify -}}
{{- range $i, $model := include "sidelens.hubModels" . | fromJsonArray }}
{{- range $command := $commands }}
- name: {{ $command }}-{{ $i }}
  image: {{ include "sidelens.image" $ }}
  imagePullPolicy: {{ $.Values.image.pullPolicy }}
  command: [sidelens]
  args: [{{ $command }}, {{ $model | quote }}, --config=/etc/sidelens/config/sidelens.toml]
  env:
    {{- include "sidelens.env" (dict "root" $) | nindent 4 }}
  {{- with $.Values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml $.Values.securityContext | nindent 4 }}
  resources:
    {{- toYaml $.Values.modelCache.resources | nindent 4 }}
  volumeMounts:
    {{- include "sidelens.volumeMounts" $ | nindent 4 }}
    {{- with $.Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A probe's handler. Callers hold no connections of the admin listener, so a busy pod is not taken for a dead one. */}}
{{- define "sidelens.probe" -}}
httpGet:
  path: {{ .path }}
  port: {{ include "sidelens.adminPortName" .root }}
  {{- if eq (include "sidelens.scheme" .root) "https" }}
  scheme: HTTPS
  {{- end }}
{{- end -}}

{{- define "sidelens.affinity" -}}
{{- $preset := include "sidelens.preset" . | fromJson -}}
{{- $affinity := deepCopy .Values.affinity -}}
{{- if and $preset.nodeAffinity (not $affinity.nodeAffinity) -}}
{{- $_ := set $affinity "nodeAffinity" $preset.nodeAffinity -}}
{{- end -}}
{{- toJson $affinity -}}
{{- end -}}

{{- define "sidelens.topologySpread" -}}
{{- range .Values.topologySpreadConstraints }}
{{- $constraint := deepCopy . }}
{{- if not $constraint.labelSelector }}
{{- $labels := merge (dict "app.kubernetes.io/component" "server") (include "sidelens.selectorLabels" $ | fromYaml) }}
{{- $_ := set $constraint "labelSelector" (dict "matchLabels" $labels) }}
{{- if semverCompare ">=1.27.0-0" $.Capabilities.KubeVersion.Version }}
{{- /* Spreads each version on its own, or a rolling update would count the old pods. */}}
{{- $_ := set $constraint "matchLabelKeys" (list "pod-template-hash") }}
{{- end }}
{{- end }}
- {{ toYaml $constraint | nindent 2 | trim }}
{{- end }}
{{- end -}}
