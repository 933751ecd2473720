#!/usr/bin/env bash
# Measures on local processes: storage beside the floor, the whole path at a rate, its limit and what lies past it, first messages.
# Arguments go to `kith-e2e bench` instead, for example: bench.sh path --rate 500 --seconds 30

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

"$KITH_LOCAL/deps.sh" all
export CARGO_TARGET_DIR="$KITH_CACHE/target"
cd "$KITH_ROOT"
cargo build --release --quiet --workspace --bins --locked
bench() { "$CARGO_TARGET_DIR/release/kith-e2e" bench "$@"; }
if [ "$#" -gt 0 ]; then
  bench "$@"
else
  bench storage
  bench path --rate 1000
  bench path --new-conversations-per-second 500
  bench path --rate 1000 --sweep
fi
