#!/usr/bin/env bash
# Takes the local cluster down and leaves nothing of it: no process, mount, device, chain or cgroup. Only ever that cluster:
# an exported KUBECONFIG or KITH_KUBECONFIG is not looked at. The cache of built tools and images stays.

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=cluster/all.sh
. "$KITH_LOCAL/cluster/all.sh"

[ "$(id -u)" = 0 ] || die "needs root"
exec 8>"$KITH_CACHE/.cluster.lock"
flock -n 8 || { say "  … waiting for another up or down"; flock 8; }

if cluster_exists; then
  STAGE_LOGS="$LOGS" stage down cluster_down
else
  say "  ✓ down: there was no cluster"
fi
