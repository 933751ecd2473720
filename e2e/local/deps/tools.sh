# Programs of the check that come as crates: the test runner, what is linked, and what is declared without a use. They are compiled without
# optimisation, which takes half the time; none of them has much to do.

NEXTEST_VERSION=0.9.151
DENY_VERSION=0.20.2
MACHETE_VERSION=0.9.2

cargo_tool() { # cargo_tool NAME VERSION ARGUMENT…
  local name="$1" version="$2"
  shift 2
  if [ -x "$BIN/$name" ] && fresh "$BIN/$name.key" "$version"; then return; fi
  # One folder for all of them: they share most of what they depend on.
  CARGO_TARGET_DIR="$KITH_CACHE/tools-target" CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0 \
    gently cargo install "$name" --version "$version" --locked --debug --root "$KITH_CACHE" "$@"
  done_with "$BIN/$name.key" "$version"
}

deps_tools() {
  cargo_tool cargo-nextest "$NEXTEST_VERSION" --no-default-features --features default-no-update
  cargo_tool cargo-machete "$MACHETE_VERSION"
  cargo_tool cargo-deny "$DENY_VERSION"
  rm -rf "$KITH_CACHE/tools-target"
}
