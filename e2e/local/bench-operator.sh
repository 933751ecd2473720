#!/usr/bin/env bash
# Measures one operator over many ChatClusters (KITH_BENCH_CLUSTERS, 300) of three shards: a real API server, imitated pods, engines and brokers
# on addresses of this machine. Ends in one table, and fails above its bounds.

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

"$KITH_LOCAL/deps.sh" debian kube
export CARGO_TARGET_DIR="$KITH_CACHE/target"
cd "$KITH_ROOT"
exec cargo test --release --workspace --test it --locked -- --ignored --exact --nocapture scale::bench_300_clusters
