# Kafka's jars by Maven, with start scripts that bear the official image's names: the folder is /opt/kafka of the local image
# and runs in place for the integration tests.

deps_kafka() {
  local root="$KITH_CACHE/kafka" stamp="$KITH_CACHE/kafka/.version" source="$KITH_ROOT/e2e/images/kafka" version
  version="$KAFKA_VERSION-$(cat "$source/pom.xml" "$source"/archive.sh "$source"/bin/* | sha256sum | cut -c1-12)"
  if fresh "$stamp" "$version"; then return; fi
  rm -rf "$root.part"
  mkdir -p "$root.part"
  mvn -B -q -f "$source/pom.xml" -Dkafka.version="$KAFKA_VERSION" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -DoutputDirectory="$root.part/libs" -DincludeScope=runtime
  cp -r "$source/bin" "$source/archive.sh" "$root.part/"
  rm -rf "$root"
  mv "$root.part" "$root"
  kafka_wrapper
  kafka_archive / "$(readlink -f "$root")" || echo "no class archive: brokers start slower"
  done_with "$stamp" "$version"
}

# kafka_archive ROOT HOME [NAME=VALUE…]: runs archive.sh of the Kafka at HOME inside the file tree ROOT. In namespaces of its own: its
# ports meet nobody's, and nothing of it can stay behind.
kafka_archive() {
  local root="$1" home="$2" work
  shift 2
  work="$(mktemp -d "${root%/}/tmp/kafka-archive.XXXXXX")"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost \
    -keyout "$work/key.pem" -out "$work/ca.crt" 2>/dev/null
  cat "$work/key.pem" "$work/ca.crt" >"$work/keystore.pem"
  # shellcheck disable=SC2016 # for the inner shell
  unshare --mount --pid --fork --net bash -euc '
    ip link set lo up
    root="$1" home="$2" work="$3"; shift 3
    if [ "$root" != / ]; then
      mkdir -p "$root/proc" "$root/dev"
      mount --rbind /dev "$root/dev"
    fi
    mount -t proc proc "${root%/}/proc"
    chroot "$root" env "$@" sh "$home/archive.sh" "$work"
  ' archive "$root" "$home" "/tmp/$(basename "$work")" "$@"
  rm -rf "$work"
}

# kafka-server FILE: formats the log folders if they are new (cluster id from KAFKA_CLUSTER_ID), then runs the broker.
kafka_wrapper() {
  cat >"$BIN/kafka-server" <<'END'
#!/bin/sh
set -e
home="$(dirname "$(readlink -f "$0")")/../kafka/bin"
"$home/kafka-storage.sh" format -t "${KAFKA_CLUSTER_ID:-bG9jYWwta2l0aC1sb2NhbA}" -c "$1" --standalone --ignore-formatted
exec "$home/kafka-server-start.sh" "$@"
END
  chmod +x "$BIN/kafka-server"
}
