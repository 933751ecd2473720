#!/bin/sh
# Starts one Valkey node with the address of this pod.
set -eu
cd /data

# A pod that is deleted without grace is made anew while its old process still runs, and acknowledges writes that a newcomer on the same
# volume would not load any more. So one waits for the other's end. The engine's own lock does not help: it is on a nodes.conf that every
# change of the file has replaced. The lock goes over to the server with its open file, and ends with it.
exec 9>.lock
flock 9

# A node that knows of slots but has lost its data would come up empty and, as a primary, empty its replicas too.
owns_slots=no
me=
if [ -f nodes.conf ]; then
  while read -r id _ flags _ _ _ _ _ slots; do
    case "$flags" in
      *myself*) me="$id"; [ -z "$slots" ] || owns_slots=yes ;;
    esac
  done <nodes.conf
fi
if [ "$owns_slots" = yes ] && [ ! -d appendonlydir ]; then
  message="refusing to start: nodes.conf says that this node owns slots, but its data (appendonlydir) is gone"
  echo "$message" >&2
  echo "$message" >/dev/termination-log 2>/dev/null || true
  exit 1
fi

# The replicas of a primary that ended hold all that was acknowledged, and the operator makes one of them the primary as soon as nobody hears
# the old one. Back at once it would begin a new history, from which every replica has to be filled anew before anything is acknowledged
# again: that takes longer than the change, and leaves one copy until then. Without an operator it is the primary again after this time.
if [ "$owns_slots" = yes ] && grep -Eq " slave(,nofailover)? $me " nodes.conf; then
  sleep 2
fi

exec valkey-server /etc/valkey/valkey.conf \
  --cluster-announce-ip "$POD_IP" \
  --cluster-announce-human-nodename "$POD_NAME"
