# What a cluster needs before it can be used: DNS, a default StorageClass, and volumes.

VOLUMES_TOTAL=24

addons_up() {
  kube apply --server-side -f "$KITH_LOCAL/manifests/storage-class.yaml"
  sed "s|@IMAGE@|$(image_ref coredns)|; s|@DNS@|$NET_DNS|" "$KITH_LOCAL/manifests/coredns.yaml" | kube apply --server-side -f -
  volumes_manifest | kube apply --server-side -f -
  spawn volumes bash "$KITH_LOCAL/cluster/volumes.sh"
  kube -n kube-system rollout status deployment/coredns --timeout=120s
}

# No provisioner runs here: the volumes exist before they are claimed, the same number on each node.
volumes_manifest() {
  local node index
  for node in $(seq "$NODES"); do
    for index in $(seq $((VOLUMES_TOTAL / NODES))); do
      mkdir -p "$CLUSTER/volumes/$(node_name "$node")-$index"
      volume_manifest "$(node_name "$node")-$index" "$(node_name "$node")"
    done
  done
}

volume_manifest() { # volume_manifest NAME NODE; the capacity is a claim, nothing enforces it
  cat <<END
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: "$1"}
spec:
  capacity: {storage: 100Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: local
  local: {path: "$CLUSTER/volumes/$1"}
  nodeAffinity:
    required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: ["$2"]}]}]}
END
}
