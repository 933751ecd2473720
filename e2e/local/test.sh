#!/usr/bin/env bash
# The whole check: style, lints, charts, unit and integration tests, then the same platform that `make up` brings up and the
# end-to-end tests on it. Each stage prints its seconds against a budget; the last line is "N passed, N failed".
#
# A failed stage does not stop the later ones that can still say something. CI=true takes the cluster down at the end;
# NIGHTLY=1 adds what takes too long for every change. Only ever the local cluster: KUBECONFIG and KITH_KUBECONFIG are not looked at.

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
unset KUBECONFIG KITH_KUBECONFIG
export CARGO_TARGET_DIR="$KITH_CACHE/target" CARGO_TERM_COLOR=never
# A clone that is checked once gains nothing from incremental compilation, which makes it slower and fills the cache.
if [ "${CI:-}" = true ]; then export CARGO_INCREMENTAL=0; fi
TEST_LOGS="$LOGS/test"
rm -rf "$TEST_LOGS"
mkdir -p "$TEST_LOGS"
cd "$KITH_ROOT"
passed=0
failed=0

# check NAME BUDGET COMMAND…: one stage. Test results that the command prints are counted one by one; a command without
# any counts as one. It is ended when it takes three times its budget: then something hangs.
check() {
  local name="$1" budget="$2" log="$TEST_LOGS/$1.log" begin=$SECONDS rc seconds note="" ok bad
  shift 2
  timeout --kill-after=20 "$((budget * 3))" "$@" >"$log" 2>&1 && rc=0 || rc=$?
  seconds=$((SECONDS - begin))
  # Results of libtest, a line for each program, and of nextest, one for all.
  read -r ok bad < <(awk '/^test result:|^ +Summary \[/ {
      for (i = 1; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^(failed|timed)/) f += $(i-1) }
    } END { print p + 0, f + 0 }' "$log")
  # A test program that dies prints no result, and a stage without tests has none.
  if [ "$rc" -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
  if [ "$rc" -eq 0 ] && [ "$ok" -eq 0 ]; then ok=1; fi
  passed=$((passed + ok))
  failed=$((failed + bad))
  [ "$seconds" -le "$budget" ] || note=" OVER BUDGET"
  [ "$rc" -ne 124 ] || note=" STOPPED: it hung"
  echo "stage $name: ${seconds}s (budget ${budget}s)$note: $ok passed, $bad failed"
  if [ "$rc" -ne 0 ]; then
    echo "  the log is $log; what failed:"
    # With the line below "panicked at", which says why; a test that returns an error says it in one line.
    { grep -E -A1 '^(test .*FAILED| +(FAIL|TIMEOUT|SIGABRT|SIGSEGV|SIGKILL) \[|error(\[|:)|Error: |  ✗|Diff in )|panicked at|\[ERROR\]' "$log" || tail -n 25 "$log"; } |
      cut -c1-1500 | head -n 60 | sed 's/^/    | /'
  fi
  return 0
}

# What a failed end-to-end test leaves to look at, before the cluster is taken down.
diagnosed() {
  # shellcheck source=cluster/all.sh
  . "$KITH_LOCAL/cluster/all.sh"
  # shellcheck source=platform.sh
  . "$KITH_LOCAL/platform.sh"
  diagnose >"$TEST_LOGS/diagnosis.log" 2>&1 || true
  echo "  events, pods and logs are in $TEST_LOGS/diagnosis.log; conditions that are not well:"
  conditions 2>&1 | grep -E '^[^=]*(Ready=(False|Unknown)|(Degraded|Progressing|FailoverBlocked|ForeignData|MemoryPressure)=True)' | head -n 20 | sed 's/^/    | /' || true
}

finish() {
  local rc=$?
  if [ "${CI:-}" = true ]; then "$KITH_LOCAL/down.sh" >"$TEST_LOGS/down.log" 2>&1 || failed=$((failed + 1)); fi
  # Ended before the end, or nothing ran at all: that is a failure too.
  if [ "$rc" -ne 0 ] || [ "$passed" -eq 0 ]; then failed=$((failed + 1)); fi
  echo "total: ${SECONDS}s"
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ] || exit 1
}
trap finish EXIT

# Compiling wants the memory that an idle platform holds.
check down 30 "$KITH_LOCAL/down.sh"
check deps 900 "$KITH_LOCAL/deps.sh" all
check tools 400 "$KITH_LOCAL/deps.sh" tools
export PATH="$BIN:$PATH"
check fmt 20 cargo fmt --all --check
check scripts 60 bash -c 'git ls-files -z "*.sh" .ci/run | xargs -0 shellcheck --severity=warning'
check unused 20 cargo machete
check deny 30 cargo deny --config .deny.toml --offline --all-features check bans licenses sources
for chart in charts/*/; do check "helm-$(basename "$chart")" 10 "$BIN/helm" lint --strict "$chart"; done
# "All targets" leaves out the one that is only run when it is named; one command for both would check nothing twice, and cargo has none.
lint="nice -n 5 cargo clippy --release --all-features --locked"
check clippy 420 bash -c "$lint --workspace --all-targets -- -D warnings && $lint --workspace --test cluster -- -D warnings"
# Tests share the profile of what they test, so that every dependency is compiled once. Tests of the local processes run the service
# binary, which tests alone do not bring into its place; all are built at once, as `make up` builds them.
build="nice -n 5 cargo test --release --locked --no-run"
binary="nice -n 5 cargo build --release --workspace --bins --locked"
check compile 900 bash -c "$binary && $build --workspace && $build --workspace --test cluster"
export KITH_BINARY="$CARGO_TARGET_DIR/release/kith"
check test 300 cargo nextest run --cargo-profile release --workspace --locked --no-fail-fast --cargo-quiet
# Examples in documentation, which nextest does not know, and the tests that share one platform of local processes.
check local 120 cargo test --release --workspace --test local --locked
if [ "${NIGHTLY:-}" = 1 ]; then
  # Every decoder against a thousand times the arbitrary input of an ordinary check.
  check fuzz 1800 env PROPTEST_CASES=250000 cargo test --release --workspace --lib --bins --locked --no-fail-fast -- \
    panic arbitrary damaged any_bytes stops_the
  # One client tries everything for an hour while others chat.
  check hostile 4500 env KITH_HOSTILE_SECONDS=3600 cargo test --release --workspace --test processes --locked -- --ignored --nocapture hostile::
  # So many rounds of each fault.
  check faults 9000 env KITH_FAULT_ROUNDS=200 cargo test --release --workspace --test processes --locked -- --ignored --nocapture faults::
fi
check up 420 "$KITH_LOCAL/up.sh"
if "$KITH_LOCAL/env.sh" print >"$TEST_LOGS/env" 2>&1; then
  failed_before=$failed
  # One shared cluster: tests that take things down say so and run alone, the others share it.
  check e2e 540 env E2E=1 bash -c '. "$0" && exec cargo test --release --workspace --test cluster --locked --no-fail-fast -- --test-threads="${E2E_THREADS:-4}"' "$TEST_LOGS/env"
  if [ "${NIGHTLY:-}" = 1 ]; then
    # What needs another cluster than this one has a stage of its own.
    check e2e-nightly 2700 env E2E=1 bash -c '. "$0" && exec cargo test --release --workspace --test cluster --locked --no-fail-fast -- --ignored --test-threads=1 --skip upgrade:: --skip production::' "$TEST_LOGS/env"
  fi
  if [ "$failed" -gt "$failed_before" ]; then (diagnosed); fi
  if [ "${NIGHTLY:-}" = 1 ]; then
    # On a cluster that the previous release was installed on.
    check upgrade 3600 "$KITH_LOCAL/upgrade.sh"
    check production 1800 "$KITH_LOCAL/production.sh"
    # Hours of it, each on a cluster of three nodes.
    for hour in 1 2 3; do check "chaos-$hour" 5400 env NODES=3 SECONDS_OF_FAULTS=3600 "$KITH_LOCAL/chaos.sh"; done
  fi
else
  echo "stage e2e: not run, the platform is not up"
  failed=$((failed + 1))
fi
