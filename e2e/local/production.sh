#!/usr/bin/env bash
# Applies examples/production.yaml to a cluster of three nodes without the sample, and waits until it is Ready and a message got through
# its load balancers, which the test plays. A quarter of an hour and some five gigabytes; what fails is left standing, to be looked at.

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
unset KUBECONFIG KITH_KUBECONFIG BROKERS VOLUME_SIZE
export NODES=3
# Twelve claims find a volume however the scheduler spreads their pods.
export FAST_VOLUMES="${FAST_VOLUMES:-8}"
"$KITH_LOCAL/up.sh" operator
export CARGO_TARGET_DIR="$KITH_CACHE/target"
cd "$KITH_ROOT"
if ! E2E=1 cargo test --release --workspace --test cluster --locked -- --ignored --nocapture production::; then
  # shellcheck source=cluster/all.sh
  . "$KITH_LOCAL/cluster/all.sh"
  # shellcheck source=platform.sh
  . "$KITH_LOCAL/platform.sh"
  # shellcheck disable=SC2034 # read by diagnose
  SAMPLE_NAMESPACE=chat
  mkdir -p "$LOGS/production"
  diagnose >"$LOGS/production/diagnosis.log" 2>&1 || true
  die "events, pods and logs are in $LOGS/production/diagnosis.log"
fi
