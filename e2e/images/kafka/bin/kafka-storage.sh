#!/bin/sh
# kafka-storage.sh format -t CLUSTER_ID -c FILE …, random-uuid, info: as in the official image.
KAFKA_HEAP_OPTS="-Xmx96m" KAFKA_JIT_LEVEL=1 KAFKA_LOG_LEVEL="${KAFKA_LOG_LEVEL:-warn}" \
  exec "$(dirname "$(readlink -f "$0")")/kafka-run-class.sh" kafka.tools.StorageTool "$@"
