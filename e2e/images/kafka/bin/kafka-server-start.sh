#!/bin/sh
# kafka-server-start.sh FILE [--override k=v]…: the broker in the foreground, as in the official image.
exec "$(dirname "$(readlink -f "$0")")/kafka-run-class.sh" kafka.Kafka "$@"
