# A node: one containerd and one kubelet with folders, sockets, ports, pod bridge and cgroup of their own. All nodes share the
# machine's network namespace, and pods reach each other across the bridges.

node_dir() { echo "$CLUSTER/nodes/$1"; }
node_socket() { echo "$CLUSTER/run/containerd-$1.sock"; }
node_ctr() { ctr -a "$(node_socket "$1")" -n k8s.io "${@:2}"; }

containerd_up() {
  local node="$1" dir
  dir="$(node_dir "$node")"
  mkdir -p "$dir"/{containerd,state,cni,opt} "$CLUSTER/run"
  cat >"$dir/cni/10-kith.conflist" <<END
{ "cniVersion": "1.0.0", "name": "kith-$(node_name "$node")", "plugins": [
  { "type": "bridge", "bridge": "$(node_bridge "$node")", "isGateway": true, "ipMasq": true, "hairpinMode": true,
    "ipam": { "type": "host-local", "dataDir": "$dir/ipam", "ranges": [[{ "subnet": "$(node_pods "$node")" }]],
              "routes": [{ "dst": "0.0.0.0/0" }] } },
  { "type": "portmap", "capabilities": { "portMappings": true } } ] }
END
  # The machine may lack CAP_SYS_RESOURCE: nobody's OOM score can then be lowered, and runc dies if told to.
  cat >"$dir/containerd.toml" <<END
version = 2
root = "$dir/containerd"
state = "$dir/state"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "$(node_socket "$node")"
[ttrpc]
  address = "$CLUSTER/run/containerd-$node.ttrpc.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$(image_ref pause)"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        Root = "$dir/runc"
END
  spawn "containerd-$node" containerd --config "$dir/containerd.toml"
  await 20 "containerd of $(node_name "$node") ($CLUSTER/logs/containerd-$node.log)" node_ctr "$node" version
}

kubelet_up() {
  local node="$1" dir
  dir="$(node_dir "$node")"
  mkdir -p "$dir"/{kubelet,pod-logs,volume-plugins}
  cgroup_make "kith/node-$node"
  : >"$CLUSTER/resolv.conf"
  cat >"$dir/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $(node_ip "$node")
port: 10250
healthzBindAddress: $(node_ip "$node")
healthzPort: 10248
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: "$CLUSTER/pki/ca.crt"}}
authorization: {mode: Webhook}
tlsCertFile: $CLUSTER/pki/kubelet-$node.crt
tlsPrivateKeyFile: $CLUSTER/pki/kubelet-$node.key
clusterDomain: cluster.local
clusterDNS: [$NET_DNS]
resolvConf: $CLUSTER/resolv.conf
containerRuntimeEndpoint: unix://$(node_socket "$node")
podLogsDir: $dir/pod-logs
volumePluginDir: $dir/volume-plugins
cgroupDriver: cgroupfs
cgroupRoot: /kith/node-$node
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
oomScoreAdj: 0
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 99
imageGCLowThresholdPercent: 98
serializeImagePulls: false
registryPullQPS: 0
eventRecordQPS: 0
shutdownGracePeriod: 0s
END
  spawn "kubelet-$node" "$BIN/kubelet" --config="$dir/kubelet.yaml" --root-dir="$dir/kubelet" --cert-dir="$dir/kubelet/pki" \
    --kubeconfig="$CLUSTER/pki/kubelet-$node.kubeconfig" --hostname-override="$(node_name "$node")" --node-ip="$(node_ip "$node")" \
    --node-labels="topology.kubernetes.io/zone=$(node_name "$node")"
}

nodes_up() {
  local node
  for node in $(seq "$NODES"); do kubelet_up "$node"; done
  await 90 "the nodes to be Ready ($CLUSTER/logs/kubelet-1.log)" nodes_ready
}

nodes_ready() {
  [ "$(kube get nodes -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' | grep -c True)" -eq "$NODES" ]
}
