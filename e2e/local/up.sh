#!/usr/bin/env bash
# Brings up the platform: tools, a local Kubernetes (unless KITH_KUBECONFIG names a cluster), images, charts, the sample, a first message.
#
# May be run again at any time and after a run that was killed at any point: what is whole is kept, anything else is taken down
# and made anew. NODES=3 makes three nodes, BROKERS=3 three brokers, VOLUME_SIZE=2G volumes that can be filled, FAST_VOLUMES=8 so many
# volumes of the class fast-ssd on each node.
#
#   up.sh             everything
#   up.sh operator    the Kubernetes cluster and the operator, no sample
#   up.sh cluster     only the Kubernetes cluster

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=cluster/all.sh
. "$KITH_LOCAL/cluster/all.sh"
# shellcheck source=versions.sh
. "$KITH_LOCAL/versions.sh"
# shellcheck source=deps/valkey.sh
. "$KITH_LOCAL/deps/valkey.sh"
# shellcheck source=deps/kafka.sh
. "$KITH_LOCAL/deps/kafka.sh"
# shellcheck source=platform.sh
. "$KITH_LOCAL/platform.sh"

[ "$(id -u)" = 0 ] || die "needs root: it starts containers, bridges and cgroups"
# One at a time; a down or another up waits here.
exec 8>"$KITH_CACHE/.cluster.lock"
flock -n 8 || { say "  … waiting for another up or down"; flock 8; }

STAGE_LOGS="$LOGS/up"
begin=$SECONDS
if [ -z "${KITH_KUBECONFIG:-}" ]; then parts=all; else parts="debian kube helm"; fi
# shellcheck disable=SC2086 # a list
"$KITH_LOCAL/deps.sh" $parts
if [ -z "${KITH_KUBECONFIG:-}" ]; then
  stage images-system images_system
  # A cluster of other pins, another size or older start scripts is another cluster.
  cluster_key="$(cat "$KITH_LOCAL"/versions.sh "$KITH_LOCAL"/cluster/*.sh "$KITH_LOCAL"/manifests/* "$IMAGES"/{pause,coredns}.tag | sha256sum | cut -c1-16)-$NODES-${BROKERS:-1}-${VOLUME_SIZE:-}-$FAST_VOLUMES"
  if fresh "$CLUSTER/ready" "$cluster_key" && cluster_healthy >/dev/null 2>&1; then
    say "  ✓ cluster: already running"
  else
    if cluster_exists; then stage cluster-clean cluster_down; fi
    stage cluster-start cluster_start
    stage cluster-addons addons_up
    done_with "$CLUSTER/ready" "$cluster_key"
  fi
fi
case "${1:-}" in
  cluster) ;;
  operator) operator_up ;;
  *) platform_up ;;
esac
say "  ✓ up: $((SECONDS - begin))s"
