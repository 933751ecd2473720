#!/bin/sh
# Runs a Kafka class with the jars beside this script; the same names and variables as in the official image.
home="$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)"
java="${JAVA_HOME:+$JAVA_HOME/bin/}java"
# shellcheck disable=SC2086 # options are lists
exec "$java" ${KAFKA_HEAP_OPTS:--Xmx256m -Xms256m} -XX:+UseSerialGC -XX:TieredStopAtLevel=${KAFKA_JIT_LEVEL:-4} \
  -XX:-UsePerfData -Djava.awt.headless=true -Dorg.slf4j.simpleLogger.showDateTime=true \
  -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS -Dorg.slf4j.simpleLogger.defaultLogLevel="${KAFKA_LOG_LEVEL:-info}" \
  ${KAFKA_OPTS:-} -cp "$home/libs/*" "$@"
