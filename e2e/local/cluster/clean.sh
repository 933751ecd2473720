# Takes down whatever exists of the local cluster, complete or half started, and leaves nothing of it behind.
#
# Everything is found by its place (cgroups below kith, mounts below the cluster folder, bridges and chains by name), never by
# what an earlier run wrote down: that run may have been killed at any point.

cluster_exists() {
  [ -d "$CLUSTER" ] || [ -n "$(find "$CGROUP_TRACK" -maxdepth 1 -name kith)" ] || ip link show "$NET_BRIDGE" >/dev/null 2>&1
}

cluster_down() {
  local name node begun
  begun="$(pids_in .)"
  # Kubelets first, or they would restart what is ended next.
  for name in $(daemons volumes kubelet-); do stop "daemons/$name" 3; done
  for node in "$CGROUP_TRACK"/kith/node-*; do
    [ ! -d "$node" ] || stop "$(basename "$node")" 3
  done
  for name in $(daemons containerd- kube-proxy kube-scheduler kube-controller-manager kube-apiserver etcd); do stop "daemons/$name" 1; done
  for name in $(daemons ''); do stop "daemons/$name" 1; done
  unmount_all
  network_down
  cgroup_gone
  reaped "$begun"
  remove_traces
  # What a failed run logged stays readable until the next one.
  if [ -d "$CLUSTER/logs" ]; then
    rm -rf "$LOGS/last-cluster"
    mv "$CLUSTER/logs" "$LOGS/last-cluster"
  fi
  rm -rf --one-file-system "$CLUSTER"
}

# daemons PREFIX…: the names of the daemons' cgroups that begin with one of the prefixes, in that order.
daemons() {
  local prefix path
  for prefix in "$@"; do
    for path in "$CGROUP_TRACK/kith/daemons/$prefix"*/; do [ ! -d "$path" ] || basename "$path"; done
  done
}

# Mount points below the cluster folder, the innermost first; lazily, should something still hold one.
unmount_all() {
  local point
  for _ in 1 2 3; do
    while IFS= read -r point; do
      # shellcheck disable=SC2059 # mountinfo escapes blanks in octal
      point="$(printf "$point")"
      umount "$point" 2>/dev/null || umount -l "$point" 2>/dev/null || true
    done < <(awk -v root="$CLUSTER/" 'index($5, root) == 1 { print $5 }' /proc/self/mountinfo | tac)
  done
  ! awk -v root="$CLUSTER/" 'index($5, root) == 1 { found = 1; print } END { exit !found }' /proc/self/mountinfo
}

# An ended process is listed until its parent has noticed; give that a moment, so that "nothing is left" is true when down says so.
reaped() {
  local pid try
  for try in $(seq 100); do
    for pid in $1; do
      if [ -d "/proc/$pid" ]; then sleep 0.1 && continue 2; fi
    done
    return 0
  done
  echo "gave up waiting for ended processes to be reaped after $try tries"
}

# The kernel lets go of a cgroup a moment after its last process.
cgroup_gone() {
  local try root left
  for try in $(seq 50); do
    cgroup_remove
    left=""
    for root in $(cgroup_hierarchies); do [ ! -d "$root/kith" ] || left="$left $root/kith"; done
    [ -n "$left" ] || return 0
    sleep 0.1
  done
  echo "these cgroups could not be removed after $try tries:$left"
  return 1
}

# Places outside the cluster folder that containerd, CNI and the kubelet have no setting for.
remove_traces() {
  local file id
  for file in /run/containerd/s/* /var/lib/kubelet/device-plugins/kubelet.sock; do
    [ ! -S "$file" ] || [ -n "$(ss -xlH src "$file")" ] || rm -f "$file"
  done
  for file in /var/lib/cni/results/kith-node-*-eth0; do
    id="${file##*/kith-node-}"
    id="${id#*-}"
    rm -f "$file" "/var/lib/cni/results/cni-loopback-${id%-eth0}-lo"
  done
  for file in /var/log/containers/*; do
    case "$(readlink "$file" || true)" in "$CLUSTER"/*) rm -f "$file" ;; esac
  done
  rmdir /var/log/containers /var/lib/cni/results /var/lib/cni /run/containerd/s /run/containerd \
    /var/lib/kubelet/device-plugins /var/lib/kubelet 2>/dev/null || true
}
