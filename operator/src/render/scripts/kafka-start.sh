#!/bin/sh
# Starts one broker: its number is the pod's, its addresses are added to the common settings, its volume is formatted once.
set -eu
id="${POD_NAME##*-}"
settings=/tmp/server.properties

# An address outside that is not known yet is not advertised: consumers inside are served all the same.
advertised="INTERNAL://$POD_NAME.$BROKER_DOMAIN:9093"
if [ -f "/etc/kafka/external-$id" ]; then
  external="$(cat "/etc/kafka/external-$id")"
  case "$external" in
    HOST:*)
      case "$HOST_IP" in
        *:*) external="[$HOST_IP]:${external#HOST:}" ;;
        *) external="$HOST_IP:${external#HOST:}" ;;
      esac
      ;;
  esac
  advertised="$advertised,EXTERNAL://$external"
fi

{
  cat /etc/kafka/server.properties
  echo "node.id=$id"
  echo "advertised.listeners=$advertised"
} >"$settings"

# A controller looks for its peers by name before the names are published; a failed look-up must not be remembered.
export KAFKA_OPTS="-Dsun.net.inetaddr.negative.ttl=0 -Dsun.net.inetaddr.ttl=5 ${KAFKA_OPTS:-}"

if [ ! -f /data/log/meta.properties ]; then
  /opt/kafka/bin/kafka-storage.sh format --cluster-id="$CLUSTER_ID" --config "$settings" --ignore-formatted
fi
exec /opt/kafka/bin/kafka-server-start.sh "$settings"
