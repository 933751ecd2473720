# The order in which a cluster comes to life, and whether it is alive.

cluster_start() {
  local node
  mkdir -p "$CLUSTER/logs"
  echo "$NODES" >"$CLUSTER/node-count"
  cgroup_make kith/daemons
  cgroup_weigh kith "$CGROUP_SHARES"
  cgroup_weigh kith/daemons "$CGROUP_DAEMONS"
  network_up
  pki_up
  for node in $(seq "$NODES"); do containerd_up "$node"; done
  for node in $(seq "$NODES"); do image_import "$node" pause coredns; done
  control_up
  nodes_up
}

cluster_healthy() {
  local node
  control_healthy || return 1
  for node in $(seq "$NODES"); do alive "containerd-$node" && alive "kubelet-$node" || return 1; done
  nodes_ready
}
