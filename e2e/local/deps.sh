#!/usr/bin/env bash
# Installs and builds what the local cluster and the tests run on, into the cache; each part is paid for once per version.
#
#   deps.sh all | deps.sh PART…      parts: debian valkey kafka kube coredns helm, which are all; and tools, for the check alone

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=versions.sh
. "$KITH_LOCAL/versions.sh"
for part in debian valkey kafka go tools; do
  # shellcheck disable=SC1090 # the parts beside this file
  . "$KITH_LOCAL/deps/$part.sh"
done

# Two runs at once would build into the same folders.
exec 9>"$KITH_CACHE/.deps.lock"
flock -n 9 || { say "  … waiting for another deps.sh"; flock 9; }

[ "$#" -gt 0 ] || set -- all
[ "$*" != all ] || set -- debian valkey kafka kube coredns helm
for part in "$@"; do
  declare -F "deps_$part" >/dev/null || die "unknown part '$part': one of debian valkey kafka kube coredns helm tools, or all"
  stage "deps-$part" "deps_$part"
done
