{{/* The Indexed Job: one pod per shard of the list, with the service's settings, model and image. */}}
{{- define "sidelens.jobSpec" -}}
{{- $job := .Values.job -}}
{{- $kube := .Capabilities.KubeVersion.Version -}}
{{- /* Requests, limits and the threads that follow from them are the Job's own where it has any. */ -}}
{{- $values := set (deepCopy .Values) "resources" (default .Values.resources $job.resources) -}}
{{- $root := merge (dict "Values" $values) . -}}
completionMode: Indexed
completions: {{ $job.shards }}
parallelism: {{ $job.parallelism }}
{{- /* 1.29 counts the failures of each shard for itself. */}}
{{- if semverCompare ">=1.29.0-0" $kube }}
backoffLimitPerIndex: {{ $job.retriesPerShard }}
{{- else }}
backoffLimit: {{ mul $job.retriesPerShard $job.shards }}
{{- end }}
{{- if semverCompare ">=1.26.0-0" $kube }}
podFailurePolicy:
  rules:
    # Stopped with its work kept: the next pod continues.
    - action: Ignore
      onExitCodes:
        containerName: sidelens
        operator: In
        values: [75]
    # Evicted, or its node drained.
    - action: Ignore
      onPodConditions:
        - type: DisruptionTarget
          status: "True"
    {{- if semverCompare ">=1.29.0-0" $kube }}
    # Complete, with more failed items than `--max-failed` allows: once more would change nothing.
    - action: FailIndex
      onExitCodes:
        containerName: sidelens
        operator: In
        values: [65]
    {{- end }}
{{- end }}
{{- if not (kindIs "invalid" $job.activeDeadlineSeconds) }}
activeDeadlineSeconds: {{ int $job.activeDeadlineSeconds }}
{{- end }}
{{- if not (kindIs "invalid" $job.ttlSecondsAfterFinished) }}
ttlSecondsAfterFinished: {{ int $job.ttlSecondsAfterFinished }}
{{- end }}
template:
  metadata:
    {{- include "sidelens.podMetadata" (dict "root" . "component" "embed") | nindent 4 }}
  spec:
    {{- include "sidelens.podSettings" $root | nindent 4 }}
    restartPolicy: Never
    # What is under way is finished, and the last table written.
    terminationGracePeriodSeconds: {{ add .Values.config.server.shutdown_timeout_s 60 }}
    {{- with include "sidelens.initContainers" $root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    containers:
      - name: sidelens
        image: {{ include "sidelens.image" . }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        command: [sidelens]
        args:
          - embed
          - --config=/etc/sidelens/config/sidelens.toml
          - {{ printf "--input=%s" $job.input | quote }}
          - {{ printf "--output=%s" $job.output | quote }}
          # Kubernetes puts the pod's number in.
          - --shard=$(JOB_COMPLETION_INDEX)/{{ $job.shards }}
          - --json
          {{- with concat .Values.extraArgs $job.extraArgs }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
        env:
          {{- include "sidelens.env" (dict "root" $root "own" (include "sidelens.serverEnv" $root)) | nindent 10 }}
        {{- with include "sidelens.envFrom" . | fromYamlArray }}
        envFrom:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        {{- with .Values.securityContext }}
        securityContext:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        resources:
          {{- include "sidelens.resources" $root | fromJson | toYaml | nindent 10 }}
        volumeMounts:
          {{- include "sidelens.volumeMounts" . | nindent 10 }}
          {{- with include "sidelens.secretMounts" (dict "root" . "secrets" (list "redisUrl")) | trim }}
          {{- . | nindent 10 }}
          {{- end }}
          {{- if $job.claim }}
          - name: job
            mountPath: {{ $job.mountPath }}
          {{- end }}
          {{- with concat .Values.extraVolumeMounts $job.volumeMounts }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    volumes:
      {{- include "sidelens.volumes" (dict "root" . "secrets" (list "hubToken" "redisUrl")) | nindent 6 }}
      {{- with $job.claim }}
      - name: job
        persistentVolumeClaim:
          claimName: {{ . }}
      {{- end }}
      {{- with $job.volumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with include "sidelens.placement" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end -}}
