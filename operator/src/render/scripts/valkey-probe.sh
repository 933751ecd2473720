#!/bin/sh
# Ready: loading its data, a primary, or a replica that follows its primary.
set -eu
REDISCLI_AUTH="$(cat /etc/kith/users/probe)"
export REDISCLI_AUTH
info="$(valkey-cli --tls --cacert /etc/kith/tls/ca.crt --cert /etc/kith/tls/tls.crt --key /etc/kith/tls/tls.key \
  -h 127.0.0.1 -p 6379 --user probe --no-auth-warning -t 3 INFO replication 2>&1)" || exit 1
case "$info" in
  *LOADING* | *role:master* | *master_link_status:up*) exit 0 ;;
  *) echo "$info" | head -c 200 >&2; exit 1 ;;
esac
