#!/bin/sh
# Runs a Kafka class with the jars beside this script; the same names and variables as in the official image.
home="$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)"
java="${JAVA_HOME:+$JAVA_HOME/bin/}java"
# Parsed classes of an earlier run (archive.sh); ignored where they do not fit.
if [ -f "$home/kafka.jsa" ]; then share="-XX:SharedArchiveFile=$home/kafka.jsa"; else share=""; fi
# The expanded class path: an archive remembers names and order.
jars="$(echo "$home"/libs/*.jar | tr ' ' :)"
# shellcheck disable=SC2086 # options are lists
exec "$java" ${KAFKA_HEAP_OPTS:--Xmx256m -Xms256m} $share -Xshare:auto -Xlog:disable -Xlog:all=warning:stderr -Xlog:cds=off -Xlog:cds+dynamic=off \
  -XX:+UseSerialGC -XX:TieredStopAtLevel="${KAFKA_JIT_LEVEL:-4}" -XX:-UsePerfData -Djava.awt.headless=true \
  -Dorg.slf4j.simpleLogger.showDateTime=true -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS \
  -Dorg.slf4j.simpleLogger.defaultLogLevel="${KAFKA_LOG_LEVEL:-info}" ${KAFKA_OPTS:-} -cp "$jars" "$@"
