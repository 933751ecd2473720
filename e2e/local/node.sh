#!/usr/bin/env bash
# Kills a node of the local cluster as a power cut would, or brings it back.
#
#   node.sh kill N    SIGKILL to kubelet, containerd, the shims and every pod of node N
#   node.sh start N   starts what of it is not running

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=cluster/all.sh
. "$KITH_LOCAL/cluster/all.sh"

what="${1:-}"
node="${2:-}"
[ -n "$node" ] && [ -d "$(node_dir "$node")" ] || die "usage: node.sh kill|start N, with N a node of the running cluster"

# All at once, and again until nothing is left: a shim that sees its container die may start another process.
node_kill() {
  local group pids end=$((SECONDS + 20))
  while [ "$SECONDS" -lt "$end" ]; do
    pids=""
    for group in "daemons/kubelet-$node" "daemons/containerd-$node" "node-$node"; do pids="$pids $(pids_in "$group")"; done
    [ -n "${pids// /}" ] || return 0
    # shellcheck disable=SC2086 # a list
    kill -KILL $pids 2>/dev/null || true
    sleep 0.05
  done
  die "node $node does not die"
}

case "$what" in
  kill) node_kill ;;
  start)
    alive "containerd-$node" || containerd_up "$node"
    alive "kubelet-$node" || kubelet_up "$node"
    ;;
  *) die "usage: node.sh kill|start N" ;;
esac
