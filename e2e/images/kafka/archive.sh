#!/bin/sh
# archive.sh FOLDER: runs the broker once and keeps its parsed classes in kafka.jsa beside the scripts, which cuts the processor time
# of every later start to a third. FOLDER is scratch and holds keystore.pem and ca.crt, so that the TLS classes are in it too.
# The archive belongs to this very java and these very paths; anywhere else it is ignored.
set -e
home="$(cd "$(dirname "$(readlink -f "$0")")" && pwd)"
work="$1"
cat >"$work/server.properties" <<END
process.roles=broker,controller
node.id=0
controller.quorum.bootstrap.servers=localhost:9095
listeners=INTERNAL://127.0.0.1:9093,CONTROLLER://127.0.0.1:9095
advertised.listeners=INTERNAL://127.0.0.1:9093,CONTROLLER://127.0.0.1:9095
controller.listener.names=CONTROLLER
inter.broker.listener.name=INTERNAL
listener.security.protocol.map=INTERNAL:SSL,CONTROLLER:SSL
ssl.keystore.type=PEM
ssl.keystore.location=$work/keystore.pem
ssl.truststore.type=PEM
ssl.truststore.location=$work/ca.crt
ssl.client.auth=required
ssl.endpoint.identification.algorithm=
log.dirs=$work/data
offsets.topic.replication.factor=1
END
rm -f "$home/kafka.jsa"
"$home/bin/kafka-storage.sh" format -t bG9jYWwta2l0aC1sb2NhbA -c "$work/server.properties" --standalone
KAFKA_OPTS="-XX:ArchiveClassesAtExit=$home/kafka.jsa" "$home/bin/kafka-server-start.sh" "$work/server.properties" >"$work/log" 2>&1 &
broker=$!
tries=0
until grep -q 'Kafka Server started' "$work/log"; do
  tries=$((tries + 1))
  if [ "$tries" -gt 120 ] || ! kill -0 "$broker"; then tail -n 30 "$work/log" && exit 1; fi
  sleep 1
done
kill "$broker"
wait "$broker" || true
ls -l "$home/kafka.jsa"
