# Shared by every script of the local harness: where things live, how a stage is timed and how a failure is told.
#
# Progress goes to stderr, so that stdout stays free for what a command is asked for (`make env`, `make token`).

set -euo pipefail

# shellcheck disable=SC2034 # used by the scripts that source this file
KITH_LOCAL="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck disable=SC2034 # the same
KITH_ROOT="$(cd "$KITH_LOCAL/../.." && pwd)"
KITH_CACHE="${KITH_CACHE:-$HOME/.cache/kith}"
BIN="$KITH_CACHE/bin"
LOGS="$KITH_CACHE/logs"
export KITH_CACHE
# kubectl keeps what it discovered; in the cache, not in the user's home.
export KUBECACHEDIR="$KITH_CACHE/kubectl"
mkdir -p "$BIN" "$LOGS"

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

# stage NAME COMMAND…: runs the command with its output in a log and prints the seconds; a failure names the stage, the
# log and its last lines, and ends the script. The command runs in a subshell with errexit, so never call stage from a condition.
stage() {
  local name="$1" log begin rc
  shift
  log="${STAGE_LOGS:-$LOGS}/${name//[^a-zA-Z0-9.-]/-}.log"
  mkdir -p "$(dirname "$log")"
  begin=$SECONDS
  say "  … $name"
  set +e
  (set -e && "$@") >"$log" 2>&1
  rc=$?
  set -e
  if [ "$rc" -ne 0 ]; then
    say "  ✗ $name failed after $((SECONDS - begin))s; the log is $log and ends with:"
    tail -n 25 "$log" | sed 's/^/    | /' >&2
    exit "$rc"
  fi
  say "  ✓ $name: $((SECONDS - begin))s"
}

# await SECONDS WHAT COMMAND…: polls until the command succeeds.
await() {
  local limit="$1" what="$2" end
  shift 2
  end=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$end" ]; then
      echo "waited ${limit}s for $what; the last try said:"
      "$@" || true
      return 1
    fi
    sleep 0.2
  done
}

# fresh STAMP VERSION: is this artefact already built from this version? done_with writes what fresh reads.
fresh() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }
done_with() { printf '%s' "$2" >"$1"; }

# Heavy builds yield to whatever else the machine does.
gently() { nice -n 5 "$@"; }

# libraries_outside ROOT BINARY: the libraries that a binary would take from outside a file tree; in an image of that tree they would be
# missing.
libraries_outside() {
  local root="$1" loader
  loader="$(find "$root/lib64/" "$root/usr/lib64/" -name 'ld-linux-x86-64.so.2' 2>/dev/null | head -n 1)"
  "$loader" --library-path "$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu" --list "$2" | awk '/=>/ { print $1, $3 }' | grep -v " $root/"
}
