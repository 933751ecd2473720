# Container images, built from the Dockerfiles that the world uses and tagged by their content: what did not change is not built
# again, and what did gets a new tag, so that `helm upgrade` rolls it.

IMAGES="$KITH_CACHE/images"

# image_ref NAME: the reference of the image that was built last.
image_ref() { echo "localhost/$1:$(cat "$IMAGES/$1.tag")"; }

image_buildah() { buildah --root "$IMAGES/storage" --runroot "$IMAGES/run" --storage-driver vfs "$@"; }

folder_hash() {
  (cd "$1" && find . \( -type f -o -type l \) -print0 | LC_ALL=C sort -z | tar --no-recursion --mtime=@0 --owner=0 --group=0 --null -T - -cf - | sha256sum | cut -c1-12)
}

# image_build NAME DOCKERFILE CONTEXT [ARG=VALUE…]: an OCI archive at $IMAGES/NAME-TAG.tar and the tag at $IMAGES/NAME.tag.
image_build() {
  local name="$1" dockerfile="$2" context="$3" tag arg args=()
  shift 3
  for arg in "$@"; do args+=(--build-arg "$arg"); done
  tag="$( (folder_hash "$context"; cat "$dockerfile"; echo "$@") | sha256sum | cut -c1-12)"
  if [ ! -f "$IMAGES/$name-$tag.tar" ]; then
    image_buildah bud -q --isolation chroot --pull-never "${args[@]}" -f "$dockerfile" -t "localhost/$name:$tag" "$context"
    image_buildah push -q --disable-compression "localhost/$name:$tag" "oci-archive:$IMAGES/.$name.part:localhost/$name:$tag"
    image_forget "$name" "$tag"
    mv "$IMAGES/.$name.part" "$IMAGES/$name-$tag.tar"
  fi
  printf '%s' "$tag" >"$IMAGES/$name.tag"
  echo "localhost/$name:$tag"
}

# Earlier builds of an image would fill the disk.
image_forget() { # image_forget NAME KEEP
  local old
  rm -f "$IMAGES/$1"-????????????.tar
  for old in $(image_buildah images --format '{{.Name}}:{{.Tag}}' | grep "^localhost/$1:" | grep -v ":$2$"); do
    image_buildah rmi -f "$old" >/dev/null || true
  done
}

# The unpacked size in whole MB, rounded up, as `docker images` shows it.
image_megabytes() {
  image_buildah images --format '{{.Size}}' "$(image_ref "$1")" | awk '{ print $2 == "GB" ? $1 * 1000 : $2 == "MB" ? int($1 + 0.999) : 1 }'
}

# image_import NODE NAME…: into the containerd of a node, unless it has that tag.
image_import() {
  local node="$1" name have
  shift
  have="$(node_ctr "$node" images ls -q)"
  for name in "$@"; do
    grep -qxF "$(image_ref "$name")" <<<"$have" || node_ctr "$node" images import "$IMAGES/$name-$(cat "$IMAGES/$name.tag").tar"
  done
}

# image_root NAME PACKAGE…: a folder with the files of Debian packages and of what they need: no shell, no package manager.
image_root() {
  local root="$IMAGES/roots/$1" key
  key="$(cat "$KITH_ROOT"/e2e/images/base/* | sha256sum | cut -c1-12) $*"
  shift
  if fresh "$root.key" "$key"; then return; fi
  rm -rf "$root"
  mkdir -p "$IMAGES/roots"
  mmdebstrap --mode=root --variant=extract --include="$(tr ' ' , <<<"$*")" bookworm "$root" "$(debian_mirror)"
  cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt" 2>/dev/null || true
  rm -rf "$root"/usr/share/{doc,man,locale,lintian,ca-certificates,bug,info} "$root"/var/{cache,lib}/{apt,dpkg} "$root"/usr/lib/x86_64-linux-gnu/gconv \
    "${root:?}"/{boot,dev,home,media,mnt,opt,proc,root,srv,sys,run}
  cp "$KITH_ROOT"/e2e/images/base/{passwd,group} "$root/etc/"
  done_with "$root.key" "$key"
}

# The images that the cluster itself runs on.
images_system() {
  local context="$IMAGES/contexts" source="$KITH_ROOT/e2e/images"
  if images_unchanged "system" "$source/pause" "$source/coredns" "$BIN/$(readlink "$BIN/coredns").key"; then return; fi
  mkdir -p "$context"/{pause,coredns}
  gcc -Os -static -s -o "$context/pause/pause" "$source/pause/pause.c"
  image_build pause "$source/pause/Dockerfile" "$context/pause"
  cp "$BIN/coredns" "$context/coredns/coredns"
  image_build coredns "$source/coredns/Dockerfile" "$context/coredns"
  images_done system
}

# What the platform stores in: Valkey and Kafka.
images_engines() {
  local context="$IMAGES/contexts" source="$KITH_ROOT/e2e/images"
  if images_unchanged engines "$source/valkey" "$source/kafka" "$source/base" "$KITH_CACHE"/{valkey,kafka}/.version; then return; fi
  mkdir -p "$context"/{valkey,kafka}
  rm -rf "$context/valkey/root" && cp -a "$KITH_CACHE/valkey" "$context/valkey/root" && rm "$context/valkey/root/.version"
  busybox_links "$context/valkey/root"
  cp "$source"/base/{passwd,group} "$context/valkey/"
  image_build valkey "$source/valkey/Dockerfile" "$context/valkey"

  image_root kafka libc6 libgcc-s1 libstdc++6 zlib1g busybox-static
  kafka_jre "$IMAGES/roots/kafka-jre"
  rm -rf "$context/kafka/root"
  cp -a "$IMAGES/roots/kafka" "$context/kafka/root"
  mkdir -p "$context/kafka/root/opt"
  cp -a "$IMAGES/roots/kafka-jre" "$context/kafka/root/opt/java"
  cp -a "$KITH_CACHE/kafka" "$context/kafka/root/opt/kafka"
  rm -f "$context/kafka/root/opt/kafka/"{.version,kafka.jsa}
  busybox_links "$context/kafka/root"
  whole_seconds "$context/kafka/root/opt/kafka"
  kafka_archive "$context/kafka/root" /opt/kafka JAVA_HOME=/opt/java || echo "no class archive: brokers start slower"
  image_build kafka "$source/kafka/Dockerfile" "$context/kafka"
  images_done engines
}

# images_unchanged GROUP PATH…: was the group built from just these files, by just this script? Cheaper than assembling the
# contexts to find out. images_done remembers what was asked last.
images_unchanged() {
  local group="$1"
  shift
  images_key="$(find "$@" "$KITH_LOCAL/images.sh" -type f -print0 | LC_ALL=C sort -z | xargs -0 cat | sha256sum | cut -c1-16)"
  fresh "$IMAGES/$group.key" "$images_key"
}
images_done() { done_with "$IMAGES/$1.key" "$images_key"; }

# /bin/sh and the usual small tools, for start scripts.
busybox_links() {
  local applet busybox=/usr/bin/busybox
  [ -e "$1$busybox" ] || busybox=/bin/busybox
  mkdir -p "$1/usr/bin" "$1/bin"
  for applet in $("$1$busybox" --list); do
    [ -e "$1/usr/bin/$applet" ] || [ -e "$1/bin/$applet" ] || ln -s "$busybox" "$1/usr/bin/$applet"
  done
  [ -L "$1/bin/sh" ] || ln -s "$busybox" "$1/bin/sh"
}

# An image layer rounds times to seconds, and Java refuses a class archive whose jars have another time than when it was made.
whole_seconds() { find "$1" -exec touch -h -d '2024-01-01 00:00:00 UTC' {} +; }

# A Java runtime with only the modules that a broker loads (java.desktop for java.beans).
kafka_jre() {
  local key modules=java.base,java.desktop,java.logging,java.management,java.management.rmi,java.naming,java.rmi,java.security.jgss,java.security.sasl,java.sql,java.xml,jdk.unsupported,jdk.management,jdk.crypto.ec,jdk.zipfs
  key="$(java -version 2>&1 | head -n 1) $modules, with its class archive, in whole seconds"
  if fresh "$1.key" "$key"; then return; fi
  # Without its archive of parsed classes, which jlink leaves out, every start takes half a second longer.
  rm -rf "$1"
  jlink --add-modules "$modules" --strip-debug --no-man-pages --no-header-files --output "$1"
  whole_seconds "$1"
  "$1/bin/java" -Xshare:dump
  done_with "$1.key" "$key"
}

# The project's own images from the binaries that cargo built. Stripped copies: symbols double their size.
images_kith() {
  local name binary dockerfile context
  image_root base libc6 libgcc-s1 libssl3 zlib1g ca-certificates
  image_build base "$KITH_ROOT/e2e/images/base/Dockerfile" "$IMAGES/roots/base"
  for name in kith kith-operator; do
    case "$name" in
      kith) dockerfile="$KITH_ROOT/services/kith/Dockerfile" ;;
      kith-operator) dockerfile="$KITH_ROOT/operator/Dockerfile" ;;
    esac
    binary="$KITH_CACHE/target/release/$name"
    context="$IMAGES/contexts/$name"
    mkdir -p "$context"
    strip -o "$context/$name" "$binary"
    if libraries_outside "$IMAGES/roots/base" "$context/$name"; then
      echo "the base image lacks the libraries above, which $name is linked with: add their packages to image_root base"
      return 1
    fi
    image_build "$name" "$dockerfile" "$context" "BASE=$(image_ref base)" "BINARY=$name"
  done
}
