# cargo-deny checks licences and sources of what is linked. It compiles for minutes, so only `make nightly` installs it.

DENY_VERSION=0.18.9

deps_deny() {
  if fresh "$BIN/cargo-deny.key" "$DENY_VERSION"; then return; fi
  CARGO_TARGET_DIR="$KITH_CACHE/deny-target" gently cargo install cargo-deny --version "$DENY_VERSION" --locked --root "$KITH_CACHE"
  rm -rf "$KITH_CACHE/deny-target"
  done_with "$BIN/cargo-deny.key" "$DENY_VERSION"
}
