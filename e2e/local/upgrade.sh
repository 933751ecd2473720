#!/usr/bin/env bash
# Upgrades a platform under load and takes it back: the previous release, built from its own commit, is brought up on a fresh cluster; then a
# test of this tree upgrades the operator, takes the ChatCluster to this version and back, and holds every promise against what was kept.
# A platform on which that went well is taken down again; one on which it did not is left to be looked at.
# Arguments go to the test.

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
unset KUBECONFIG KITH_KUBECONFIG
# Not as many as the cluster had that is taken down here.
export NODES="${NODES:-1}"
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

STAGE_LOGS="$LOGS/upgrade"
read -r previous commit <"$KITH_LOCAL/previous-release"
release="$KITH_CACHE/releases/$commit"

# The files of the previous release, as its commit has them.
release_files() {
  local part="$release.part"
  git -C "$KITH_ROOT" cat-file -e "$commit^{commit}" || {
    echo "commit $commit of version $previous is not here: git fetch --unshallow"
    return 1
  }
  rm -rf "$part"
  mkdir -p "$part"
  git -C "$KITH_ROOT" archive "$commit" | tar -x -C "$part"
  mv "$part" "$release"
}

test_build() {
  cd "$KITH_ROOT"
  CARGO_TARGET_DIR="$KITH_CACHE/target" gently cargo test --release --workspace --test cluster --locked --no-run
}

# previous_values: chart values of the images that were built last, as those of the version before.
previous_values() {
  local part
  printf 'previous.version=%s' "$previous"
  for part in kith valkey kafka; do printf ',previous.images.%s=%s' "$part" "$(image_ref "$part")"; done
}

# present_values: the same as those of this version, and the operator's.
present_values() {
  local part
  printf 'images.operator=%s' "$(image_ref kith-operator)"
  for part in kith valkey kafka; do printf ',images.%s=%s' "$part" "$(image_ref "$part")"; done
}

upgrade_test() {
  cd "$KITH_ROOT"
  eval "$("$KITH_LOCAL/env.sh" print)"
  CARGO_TARGET_DIR="$KITH_CACHE/target" KITH_UPGRADE_VALUES="$1" \
    cargo test --release --workspace --test cluster --locked -- \
    --ignored --exact --nocapture upgrade::a_platform_is_upgraded_and_taken_back_under_load "${@:2}"
}

[ "$(id -u)" = 0 ] || die "needs root: it starts containers, bridges and cgroups"
# Compiling wants the memory that a platform holds.
"$KITH_LOCAL/down.sh"
"$KITH_LOCAL/deps.sh" all
stage cargo-build cargo_build
stage test-build test_build
if [ ! -d "$release" ]; then stage release-files release_files; fi
say "  … version $previous from $release"
"$release/e2e/local/up.sh"
previous_images="$(previous_values)"
# Both share cargo's folder: what was compiled above comes back into its place.
stage cargo-build-again cargo_build
stage images-engines images_engines
stage images-kith images_kith
for node in $(seq "$NODES"); do stage "images-import-$node" image_import "$node" valkey kafka kith kith-operator; done
# Its figures are what one wants to see.
upgrade_test "$(present_values),$previous_images" "$@" || {
  diagnose >"$STAGE_LOGS/diagnosis.log" 2>&1 || true
  die "events, pods and logs are in $STAGE_LOGS/diagnosis.log"
}
"$KITH_LOCAL/down.sh"
