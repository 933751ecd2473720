# Valkey from Debian sid, unpacked into one folder: the rootfs of the local image, and it runs in place.
#
# Debian stable is too old for atomic slot migration and nothing else that is packaged has TLS. The machine's own apt is left
# alone: sid gets a configuration, lists and a download folder of its own. The mirror is the one that the machine already uses.

VALKEY_PACKAGES="valkey-server valkey-tools libc6 libatomic1 libjemalloc2 liblzf1 libssl3t64 libsystemd0 libzstd1 zlib1g
  libcap2 libgcc-s1 libstdc++6 busybox-static util-linux"

debian_mirror() {
  # shellcheck disable=SC2016 # apt expands these
  apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk '$1 == "Debian" && $2 == "main" && $3 !~ /security/ { print $4; exit }'
}

valkey_apt() {
  apt-get -q -o Dir="$KITH_CACHE/sid" -o Dir::State="$KITH_CACHE/sid/state" -o Dir::Cache="$KITH_CACHE/sid/cache" \
    -o Dir::State::status="$KITH_CACHE/sid/status" -o Dir::Etc::sourcelist="$KITH_CACHE/sid/sources.list" \
    -o Dir::Etc::sourceparts=- -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o APT::Sandbox::User=root "$@"
}

deps_valkey() {
  local root="$KITH_CACHE/valkey" stamp="$KITH_CACHE/valkey/.version" version mirror deb
  version="$VALKEY_VERSION-$(sha256sum <<<"$VALKEY_PACKAGES" | cut -c1-12)"
  if fresh "$stamp" "$version"; then return; fi
  mirror="$(debian_mirror)"
  [ -n "$mirror" ] || { echo "no Debian mirror found in the machine's apt sources"; return 1; }
  rm -rf "$root" "$root.part" "$KITH_CACHE/sid"
  mkdir -p "$root.part" "$KITH_CACHE"/sid/{state/lists/partial,cache/archives/partial,debs}
  : >"$KITH_CACHE/sid/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$KITH_CACHE/sid/sources.list"
  valkey_apt update
  # shellcheck disable=SC2086 # a list
  (cd "$KITH_CACHE/sid/debs" && valkey_apt download $VALKEY_PACKAGES)
  for deb in "$KITH_CACHE"/sid/debs/*.deb; do
    case "${deb##*/}" in
      # The one tool that the start script needs and busybox lacks.
      util-linux_*) dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root.part" ./usr/bin/flock ;;
      *) dpkg-deb -x "$deb" "$root.part" ;;
    esac
  done
  # Debian's packages expect these links from base-files.
  for deb in bin lib lib64 sbin; do
    [ -e "$root.part/$deb" ] || ln -s "usr/$deb" "$root.part/$deb"
  done
  rm -rf "$root.part"/usr/share/{doc,man,locale,lintian,bash-completion} "$root.part"/usr/lib/x86_64-linux-gnu/gconv "$KITH_CACHE/sid"
  mv "$root.part" "$root"
  valkey_wrapper valkey-server valkey-server
  valkey_wrapper valkey-cli valkey-cli
  "$BIN/valkey-server" --version
  "$BIN/valkey-server" --version | grep -q "v=$VALKEY_VERSION " || {
    echo "sid no longer has $VALKEY_VERSION: try the newer one, then change VALKEY_VERSION in e2e/local/versions.sh"
    return 1
  }
  if libraries_outside "$root" "$root/usr/bin/valkey-server"; then
    echo "valkey-server takes the libraries above from outside its folder: add their packages to VALKEY_PACKAGES"
    return 1
  fi
  done_with "$stamp" "$version"
}

# The binaries want a newer libc than the machine's, so they run under the loader that came with them.
valkey_wrapper() {
  cat >"$BIN/$1" <<END
#!/bin/sh
root="\$(dirname "\$(readlink -f "\$0")")/../valkey"
exec "\$root/usr/lib64/ld-linux-x86-64.so.2" --argv0 $1 --library-path "\$root/usr/lib/x86_64-linux-gnu" "\$root/usr/bin/$2" "\$@"
END
  chmod +x "$BIN/$1"
}
