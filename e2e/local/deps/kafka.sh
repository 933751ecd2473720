# Kafka's jars by Maven, with start scripts that bear the official image's names: the folder is /opt/kafka of the local image
# and runs in place for the integration tests.

deps_kafka() {
  local root="$KITH_CACHE/kafka" stamp="$KITH_CACHE/kafka/.version" source="$KITH_ROOT/e2e/images/kafka" version
  version="$KAFKA_VERSION-$(cat "$source/pom.xml" "$source"/bin/* | sha256sum | cut -c1-12)"
  if fresh "$stamp" "$version"; then return; fi
  rm -rf "$root.part"
  mkdir -p "$root.part"
  mvn -B -q -f "$source/pom.xml" -Dkafka.version="$KAFKA_VERSION" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -DoutputDirectory="$root.part/libs" -DincludeScope=runtime
  cp -r "$source/bin" "$root.part/bin"
  rm -rf "$root"
  mv "$root.part" "$root"
  kafka_wrapper
  done_with "$stamp" "$version"
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
