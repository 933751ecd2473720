{{/* The name of everything in this release; the release's own name where it says kith-operator already. */}}
{{- define "kith-operator.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "kith-operator.selector" -}}
app.kubernetes.io/name: kith-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kith-operator.labels" -}}
{{ include "kith-operator.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: kith
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "kith-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "kith-operator.fullname" .) -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What the operator does in the namespaces where ChatClusters live. */}}
{{- define "kith-operator.rules" -}}
# Kith's own objects: users own the specs of ChatClusters, Gateways and hand-made shards; the operator makes shards and rebalances.
- apiGroups: [kith.dev]
  resources: [chatclusters, gateways]
  verbs: [get, list, watch, update, patch]
- apiGroups: [kith.dev]
  resources: [storageshards, shardrebalances]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [kith.dev]
  resources: [chatclusters/status, storageshards/status, gateways/status, shardrebalances/status]
  verbs: [get, update, patch]
- apiGroups: [kith.dev]
  resources: [chatclusters/finalizers, storageshards/finalizers, gateways/finalizers, shardrebalances/finalizers]
  verbs: [update]
# What a ChatCluster is made of.
- apiGroups: [apps]
  resources: [statefulsets, deployments]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [""]
  resources: [services, configmaps, secrets, serviceaccounts]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies, ingresses]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, update, patch, delete]
# Pods are made by StatefulSets and Deployments; the operator labels, evicts and deletes them one by one. Claims are made by
# StatefulSets; it grows them, and deletes them where reclaimPolicy says so.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, delete]
# Readiness of a broker's pod waits for a condition that the operator writes.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods/eviction]
  verbs: [create]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, update, patch, delete]
- apiGroups: ["", events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* Policies hold where the operator watches, and not where another release of it does. */}}
{{- define "kith-operator.watchedNamespaces" -}}
{{- if .Values.watchNamespaces -}}
matchResources:
  namespaceSelector:
    matchExpressions:
    - key: kubernetes.io/metadata.name
      operator: In
      values: {{ toJson .Values.watchNamespaces }}
{{- end -}}
{{- end -}}
