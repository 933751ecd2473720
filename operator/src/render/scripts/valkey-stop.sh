#!/bin/sh
# Before a planned end: a primary waits until the operator has made one of its replicas the primary, ten seconds at most, so that
# nobody is refused for longer than a hand-over takes.
set -eu
REDISCLI_AUTH="$(cat /etc/kith/users/probe)"
export REDISCLI_AUTH
end=$(($(date +%s) + 10))
while [ "$(date +%s)" -lt "$end" ]; do
  info="$(valkey-cli --tls --cacert /etc/kith/tls/ca.crt --cert /etc/kith/tls/tls.crt --key /etc/kith/tls/tls.key \
    -h 127.0.0.1 -p 6379 --user probe --no-auth-warning -t 3 INFO replication 2>&1)" || exit 0
  case "$info" in
    *connected_slaves:0*) exit 0 ;;
    *role:master*) sleep 0.1 ;;
    *) exit 0 ;;
  esac
done
