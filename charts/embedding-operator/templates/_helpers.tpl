{{/* Names leave room for what is appended to them: a Service's has at most 63 characters. */}}
{{- define "embedding-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 48 | trimSuffix "-" }}
{{- end }}

{{- define "embedding-operator.fullname" -}}
{{- $name := include "embedding-operator.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 48 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 48 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 48 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "embedding-operator.serviceAccountName" -}}
{{- default (include "embedding-operator.fullname" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "embedding-operator.metricsName" -}}
{{ include "embedding-operator.fullname" . }}-metrics
{{- end }}

{{- define "embedding-operator.leaseName" -}}
{{- default (include "embedding-operator.fullname" .) .Values.leaderElection.leaseName }}
{{- end }}

{{/* What selects the operator's pods; never changes. */}}
{{- define "embedding-operator.selector" -}}
app.kubernetes.io/name: {{ include "embedding-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of objects and pods: the chart's own win over `labels`, and those over
commonLabels. The chart's version is none of them: a new one would restart the pods. */}}
{{- define "embedding-operator.labels" -}}
{{- $labels := mergeOverwrite (dict) (default dict .context.Values.commonLabels) (default dict .labels) }}
{{- $labels = mergeOverwrite $labels (include "embedding-operator.selector" .context | fromYaml) }}
{{- $_ := set $labels "app.kubernetes.io/version" .context.Chart.AppVersion }}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .context.Release.Service }}
{{- toYaml $labels }}
{{- end }}

{{/* The metadata of an object: of `name`, in `namespace` if it has one, with `labels` and
`annotations` of its own. */}}
{{- define "embedding-operator.metadata" -}}
name: {{ .name }}
{{- with .namespace }}
namespace: {{ . }}
{{- end }}
labels:
  helm.sh/chart: {{ printf "%s-%s" .context.Chart.Name .context.Chart.Version | replace "+" "_" }}
  {{- include "embedding-operator.labels" . | nindent 2 }}
{{- with mergeOverwrite (dict) (default dict .context.Values.commonAnnotations) (default dict .annotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* An image, of the values `image`, with the tag `tag` where they have none. */}}
{{- define "embedding-operator.image" -}}
{{- $registry := default .image.registry .context.Values.global.imageRegistry }}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ default .tag .image.tag }}{{ end }}
{{- end }}

{{/* A list as pods want it, of names or of objects that have one. */}}
{{- define "embedding-operator.imagePullSecrets" -}}
{{- $secrets := list }}
{{- range concat (default list .Values.global.imagePullSecrets) (default list .Values.imagePullSecrets) }}
{{- $secrets = append $secrets (ternary . (dict "name" .) (kindIs "map" .)) }}
{{- end }}
{{- with uniq $secrets }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* The settings of the operator: flag, and the value that it comes from. What has no value is
not set. Its place in the pod (POD_NAME, POD_NAMESPACE) comes from the environment. */}}
{{- define "embedding-operator.flags" -}}
{{- $values := .Values }}
{{- $cuda := "" }}
{{- if $values.server.cudaImage.repository }}
{{- $cuda = include "embedding-operator.image" (dict "context" . "image" $values.server.cudaImage "tag" (printf "%s-cuda" .Chart.AppVersion)) }}
{{- end }}
server-image: {{ include "embedding-operator.image" (dict "context" . "image" $values.server.image "tag" .Chart.AppVersion) | quote }}
server-cuda-image: {{ $cuda | quote }}
hub-endpoint: {{ $values.hub.endpoint | quote }}
allowed-endpoints: {{ join "," $values.hub.allowedEndpoints | quote }}
namespaces: {{ join "," $values.watchNamespaces | quote }}
concurrency: {{ $values.concurrency | int64 | quote }}
fetch-retry: {{ $values.fetchRetrySeconds | int64 | quote }}
leader-election: {{ $values.leaderElection.enabled | quote }}
lease-name: {{ include "embedding-operator.leaseName" . | quote }}
admin-address: {{ printf (ternary "[%s]:%d" "%s:%d" (contains ":" $values.admin.host)) $values.admin.host (int $values.admin.port) | quote }}
log: {{ $values.log.filter | quote }}
log-format: {{ $values.log.format | quote }}
{{- end }}

{{/* Which value sets what may not be set again by extraArgs and extraEnv: of flags without
the dashes, and of variables. */}}
{{- define "embedding-operator.owned" -}}
server-image: server.image
EMBEDDING_SERVER_IMAGE: server.image
server-cuda-image: server.cudaImage
EMBEDDING_SERVER_CUDA_IMAGE: server.cudaImage
hub-endpoint: hub.endpoint
EMBEDDING_HUB_ENDPOINT: hub.endpoint
allowed-endpoints: hub.allowedEndpoints
EMBEDDING_ALLOWED_ENDPOINTS: hub.allowedEndpoints
namespaces: watchNamespaces
WATCH_NAMESPACES: watchNamespaces
concurrency: concurrency
EMBEDDING_CONCURRENCY: concurrency
fetch-retry: fetchRetrySeconds
EMBEDDING_FETCH_RETRY: fetchRetrySeconds
leader-election: leaderElection.enabled
EMBEDDING_LEADER_ELECTION: leaderElection.enabled
lease-namespace: the release's namespace
POD_NAMESPACE: the release's namespace
lease-name: leaderElection.leaseName
EMBEDDING_LEASE_NAME: leaderElection.leaseName
identity: the pod's name
POD_NAME: the pod's name
admin-address: admin
EMBEDDING_ADMIN_ADDRESS: admin
log: log.filter
RUST_LOG: log.filter
log-format: log.format
EMBEDDING_LOG_FORMAT: log.format
{{- end }}

{{/* What contradicts itself is refused before anything is installed. */}}
{{- define "embedding-operator.validate" -}}
{{- $values := .Values }}
{{- if not $values.enabled }}
{{- fail "enabled is false, and the chart is rendered nevertheless: it is for the condition of a parent chart. Not to install the operator, leave the chart out." }}
{{- end }}
{{- if and $values.clusterWide $values.watchNamespaces }}
{{- fail (printf "both scopes are set: clusterWide is true, and watchNamespaces has %s. Unset watchNamespaces to look after all namespaces, or clusterWide to look after those only." (join ", " $values.watchNamespaces)) }}
{{- end }}
{{- if and (eq (toString $values.clusterWide) "false") (not $values.watchNamespaces) }}
{{- fail "no scope is set: clusterWide is false, and watchNamespaces is empty. List the namespaces in watchNamespaces, or unset clusterWide to look after all of them." }}
{{- end }}
{{- if and (gt (int $values.replicas) 1) (not $values.leaderElection.enabled) }}
{{- fail (printf "replicas is %d, and leaderElection.enabled is false: all of them would work at once. Set replicas to 1, or leaderElection.enabled to true." (int $values.replicas)) }}
{{- end }}
{{- if not (or $values.serviceAccount.create $values.serviceAccount.name) }}
{{- fail "serviceAccount.create is false, and serviceAccount.name is empty: the operator would run with the rights of the namespace's default account. Name the account that it is to use." }}
{{- end }}
{{- if and $values.metrics.serviceMonitor.enabled (not $values.metrics.service.enabled) }}
{{- fail "metrics.serviceMonitor.enabled is true, and metrics.service.enabled is false: a ServiceMonitor finds the operator by that Service. Set metrics.service.enabled to true." }}
{{- end }}
{{- $owned := include "embedding-operator.owned" . | fromYaml }}
{{- range $values.extraArgs }}
{{- $flag := regexFind "^--[a-z-]+" . | trimPrefix "--" }}
{{- if hasKey $owned $flag }}
{{- fail (printf "extraArgs has --%s, which comes from another value: %s. Set that one." $flag (get $owned $flag)) }}
{{- end }}
{{- end }}
{{- range $values.extraEnv }}
{{- if hasKey $owned .name }}
{{- fail (printf "extraEnv has %s, which comes from another value: %s. Set that one." .name (get $owned .name)) }}
{{- end }}
{{- end }}
{{- end }}
