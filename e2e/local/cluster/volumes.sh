#!/usr/bin/env bash
# Recycles volumes for as long as the cluster runs: one whose claim was deleted is emptied and offered again.
# A watch, not a poll, so that an idle cluster stays idle.

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
. "$KITH_LOCAL/cluster/all.sh"

while true; do
  kube get pv --watch -o 'jsonpath={.metadata.name} {.status.phase}{"\n"}' | while read -r name phase; do
    [ "$phase" = Released ] || continue
    kube delete pv "$name" --wait=true --timeout=30s || continue
    find "$CLUSTER/volumes/$name" -mindepth 1 -delete
    volume_manifest "$name" | kube apply --server-side -f -
  done || true
  sleep 1
done
