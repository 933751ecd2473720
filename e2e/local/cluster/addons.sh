# What a cluster needs before it can be used: DNS, a default StorageClass, and volumes.

VOLUMES_TOTAL=24
# So many more on each node are of the class fast-ssd, which is there with them: examples/production.yaml asks for it.
FAST_VOLUMES="${FAST_VOLUMES:-0}"

addons_up() {
  kube apply --server-side -f "$KITH_LOCAL/manifests/storage-class.yaml"
  if [ "$FAST_VOLUMES" -gt 0 ]; then fast_class | kube apply --server-side -f -; fi
  sed "s|@IMAGE@|$(image_ref coredns)|; s|@DNS@|$NET_DNS|" "$KITH_LOCAL/manifests/coredns.yaml" | kube apply --server-side -f -
  volumes_manifest | kube apply --server-side -f -
  spawn volumes bash "$KITH_LOCAL/cluster/volumes.sh"
  kube -n kube-system rollout status deployment/coredns --timeout=120s
}

# The default class under another name.
fast_class() { sed '/^  annotations:/d; s/^  name: local$/  name: fast-ssd/' "$KITH_LOCAL/manifests/storage-class.yaml"; }

# No provisioner runs here: the volumes exist before they are claimed, the same number on each node. Their names say where they are:
# NODE-INDEX, or CLASS.NODE-INDEX where the class is not the default.
volumes_manifest() {
  local node index
  for node in $(seq "$NODES"); do
    for index in $(seq $((VOLUMES_TOTAL / NODES))); do volume_made "$(node_name "$node")-$index"; done
    for index in $(seq "$FAST_VOLUMES"); do volume_made "fast-ssd.$(node_name "$node")-$index"; done
  done
}

volume_made() { # volume_made NAME
  volume_folder "$1"
  volume_manifest "$1"
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

# volume_manifest NAME: the capacity is a claim that only VOLUME_SIZE enforces.
volume_manifest() {
  local name="$1" class=local size=100Gi node
  case "$name" in *.*) class="${name%%.*}" size=500Gi ;; esac
  node="${name#*.}"
  cat <<END
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: "$name"}
spec:
  capacity: {storage: $size}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: $class
  local: {path: "$CLUSTER/volumes/$name"}
  nodeAffinity:
    required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: ["${node%-*}"]}]}]}
END
}
