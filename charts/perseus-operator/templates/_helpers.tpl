{{- define "perseus.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if .Values.nameOverride -}}
{{- printf "%s-%s" .Release.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Arguments: the root context and the name of a program. */}}
{{- define "perseus.image" -}}
{{- $values := .root.Values.image -}}
{{- printf "%s/%s%s:%s" $values.registry $values.prefix .program ($values.tag | default .root.Chart.AppVersion) -}}
{{- end -}}

{{- define "perseus.selectorLabels" -}}
app.kubernetes.io/name: perseus-{{ .program }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "perseus.labels" -}}
{{ include "perseus.selectorLabels" . }}
app.kubernetes.io/component: {{ .program }}
app.kubernetes.io/part-of: perseus-operator
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Arguments: the root context, the metrics port, and the pod's own annotations. */}}
{{- define "perseus.podAnnotations" -}}
{{- $annotations := dict -}}
{{- if .root.Values.prometheus.annotations -}}
{{- $annotations = dict "prometheus.io/scrape" "true" "prometheus.io/port" (toString .port) "prometheus.io/path" "/metrics" -}}
{{- end -}}
{{- with merge (deepCopy (.annotations | default dict)) $annotations -}}
{{- toYaml . -}}
{{- end -}}
{{- end -}}

{{- define "perseus.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "perseus.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Where the node has libnvidia-ml.so.1; empty where NVIDIA's container runtime brings it. */}}
{{- define "perseus.driverLibrary" -}}
{{- $places := dict
  "ContainerRuntime" ""
  "Host" "/usr/lib/x86_64-linux-gnu"
  "GpuOperator" "/run/nvidia/driver/usr/lib/x86_64-linux-gnu"
  "Gke" "/home/kubernetes/bin/nvidia/lib64" -}}
{{- $driver := .Values.agent.driver | default dict -}}{{/* helm upgrade --reuse-values brings an older release's values */}}
{{- with get $places ($driver.profile | default "ContainerRuntime") -}}
{{- $driver.library | default (printf "%s/libnvidia-ml.so.1" .) -}}
{{- end -}}
{{- end -}}

{{- define "perseus.simulatorEnvironment" -}}
- name: LD_LIBRARY_PATH
  value: {{ .Values.simulator.folder }}/lib
- name: PERSEUS_SIMULATOR_STATE
  value: {{ .Values.simulator.folder }}/state
- name: PERSEUS_SIMULATOR_LIBRARY
  value: {{ .Values.simulator.folder }}/lib/libnvidia-ml.so.1
{{- end -}}
