#!/usr/bin/env bash
# Fifteen minutes under load: brings the platform up on three nodes with three brokers (NODES says otherwise), changes the shards once with
# nothing else happening, then again while things die, hang, fill up and are cut off (SECONDS_OF_FAULTS), and prints what was promised and
# what was kept.
# Arguments go to `kith-e2e chaos`.

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
unset KUBECONFIG KITH_KUBECONFIG
export NODES="${NODES:-3}"
# Two brokers survive nothing, so there is one or there are three.
if [ "$NODES" -ge 3 ]; then BROKERS="${BROKERS:-3}"; fi
export BROKERS="${BROKERS:-1}" VOLUME_SIZE="${VOLUME_SIZE:-2G}"
"$KITH_LOCAL/up.sh"
export CARGO_TARGET_DIR="$KITH_CACHE/target"
cd "$KITH_ROOT"
eval "$("$KITH_LOCAL/env.sh" print)"
RUST_LOG="${RUST_LOG:-warn,kith_e2e::chaos=info}" "$CARGO_TARGET_DIR/release/kith-e2e" chaos --seconds "${SECONDS_OF_FAULTS:-660}" "$@"
