#!/usr/bin/env bash
# Measures the platform that `make up` runs: two minutes at a rate, the first of them cold if it was just brought up, what each process
# used, then the highest rate that is held. Arguments go to `kith-e2e bench cluster` instead, for example: bench-cluster.sh --rate 500

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

export CARGO_TARGET_DIR="$KITH_CACHE/target"
cd "$KITH_ROOT"
cargo build --release --quiet --workspace --bins --locked
eval "$("$KITH_LOCAL/env.sh" print)"
if [ "$#" -eq 0 ]; then set -- --rate 1000 --sweep; fi
exec "$CARGO_TARGET_DIR/release/kith-e2e" bench cluster "$@"
