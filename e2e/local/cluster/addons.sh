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
      volume_folder "$(node_name "$node")-$index"
      volume_manifest "$(node_name "$node")-$index" "$(node_name "$node")"
    done
  done
}

# A folder; with VOLUME_SIZE it is a file system of that size, which can be filled without filling the machine's.
volume_folder() {
  local file="$CLUSTER/volume-files/$1"
  mkdir -p "$CLUSTER/volumes/$1"
  [ -n "${VOLUME_SIZE:-}" ] || return 0
  mkdir -p "$CLUSTER/volume-files"
  truncate -s "$VOLUME_SIZE" "$file"
  mkfs.ext4 -q -m 0 "$file"
  mount -o loop "$file" "$CLUSTER/volumes/$1"
}

volume_manifest() { # volume_manifest NAME NODE; the capacity is a claim that only VOLUME_SIZE enforces
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
