{{/*
The name of everything in this release. A release that is named like the chart, or like its beginning (`kith`), does not say it twice.
*/}}
{{- define "kith-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else if hasPrefix (printf "%s-" .Release.Name) .Chart.Name -}}
{{- .Chart.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/*
The name of what belongs to no namespace. Releases that look after namespaces of their own may be called alike in several; of those that look
after all, Helm refuses a second one of the same name.
*/}}
{{- define "kith-operator.clusterName" -}}
{{- if .Values.watchNamespaces -}}
{{- printf "%s-%s" (include "kith-operator.fullname" .) .Release.Namespace -}}
{{- else -}}
{{- include "kith-operator.fullname" . -}}
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

{{/*
What the operator does in the namespaces where ChatClusters live: exactly what it asks for (operator/tests/it/rights.rs). Applying an object
takes patch, and create where it is not there yet.
*/}}
{{- define "kith-operator.rules" -}}
# Kith's own objects: users own the specs of ChatClusters, Gateways and hand-made shards; the operator makes shards and rebalances.
- apiGroups: [kith.dev]
  resources: [chatclusters]
  verbs: [get, list, watch, patch]
- apiGroups: [kith.dev]
  resources: [gateways]
  verbs: [list, watch]
- apiGroups: [kith.dev]
  resources: [storageshards]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [kith.dev]
  resources: [shardrebalances]
  verbs: [get, list, watch, create, delete]
- apiGroups: [kith.dev]
  resources: [chatclusters/status, storageshards/status, gateways/status, shardrebalances/status]
  verbs: [patch]
# Where the API server checks who may own objects that block the owner's deletion (OpenShift does), this is what is asked for.
- apiGroups: [kith.dev]
  resources: [chatclusters/finalizers, storageshards/finalizers, gateways/finalizers]
  verbs: [update]
# What a ChatCluster is made of.
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies, ingresses]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
# Pods are made by StatefulSets and Deployments; the operator deletes them one by one. Claims are made by StatefulSets; it grows them, and
# deletes that of a member that is gone for good.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
# Readiness of a broker's pod waits for a condition that the operator writes.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
# Why a StatefulSet's pods are not made is said in Events alone.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
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

{{/* Where this release leads, as other releases read it. */}}
{{- define "kith-operator.watches" -}}
{{- if .Values.watchNamespaces }}{{ join "," .Values.watchNamespaces }}{{ else }}*{{ end }}
{{- end -}}

{{/* Who a pod of the operator is. */}}
{{- define "kith-operator.place" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: KITH_LEASE
  value: {{ include "kith-operator.fullname" . }}
{{- with .Values.watchNamespaces }}
- name: WATCH_NAMESPACE
  value: {{ join "," . | quote }}
{{- end }}
- name: RUST_LOG
  value: {{ .Values.logLevel | quote }}
{{- end -}}

{{/* Labels and annotations of what exists only while the release is uninstalled. None of them says that it is the operator. */}}
{{- define "kith-operator.uninstallMeta" -}}
labels:
  app.kubernetes.io/name: {{ include "kith-operator.fullname" .root }}-uninstall
  app.kubernetes.io/instance: {{ .root.Release.Name }}
  app.kubernetes.io/part-of: kith
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
annotations:
  helm.sh/hook: post-delete
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
