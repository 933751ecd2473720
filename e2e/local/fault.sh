#!/usr/bin/env bash
# Faults of the local cluster that Kubernetes itself has no command for. Each ends by itself or has its way back.
#
#   fault.sh freeze UID PROCESS SECONDS   stops (SIGSTOP) every process of that name in the pod with that UID, then lets it go on
#   fault.sh slow-api SECONDS             each call to the API server takes up to two seconds: it runs a tenth of the time
#   fault.sh cut N SECONDS                nothing that the pods of node N send leaves the node, while everything reaches them; then all does
#   fault.sh fill VOLUME SECONDS          the file system of a volume is full, then has room again (VOLUME_SIZE=2G make up)

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=cluster/all.sh
. "$KITH_LOCAL/cluster/all.sh"

usage() { die "usage: $(sed -n '4,7s/^#   //p' "${BASH_SOURCE[0]}")"; }

# Whatever ends this script ends the fault.
back=":"
trap 'eval "$back"' EXIT
trap 'exit 130' INT TERM

# processes_of UID NAME: the processes of a pod, by the name of their program.
processes_of() {
  local file pid
  while IFS= read -r file; do
    while read -r pid; do
      [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != "$2" ] || echo "$pid"
    done <"$file"
  done < <(find "$CGROUP_TRACK/kith" -path "*$1*" -name cgroup.procs 2>/dev/null)
}

freeze() {
  local pids
  pids="$(processes_of "$1" "$2" | tr '\n' ' ')"
  [ -n "${pids// /}" ] || die "the pod $1 has no process $2"
  back="kill -CONT $pids 2>/dev/null || true"
  # shellcheck disable=SC2086 # a list
  kill -STOP $pids
  sleep "$3"
}

slow_api() {
  local pids end=$((SECONDS + $1))
  pids="$(pids_in daemons/kube-apiserver | tr '\n' ' ')"
  [ -n "${pids// /}" ] || die "no API server runs here"
  back="kill -CONT $pids 2>/dev/null || true"
  while [ "$SECONDS" -lt "$end" ]; do
    # shellcheck disable=SC2086 # a list
    kill -STOP $pids
    sleep 1.8
    # shellcheck disable=SC2086 # a list
    kill -CONT $pids
    sleep 0.2
  done
}

cut_node() {
  local bridge rules
  bridge="$(node_bridge "$1")"
  ip link show "$bridge" >/dev/null 2>&1 || die "there is no node $1"
  rules="INPUT -i $bridge -j DROP;FORWARD -i $bridge ! -o $bridge -j DROP"
  back="cut_rules -D '$rules'"
  cut_rules -I "$rules"
  sleep "$2"
}

cut_rules() {
  local rule
  while IFS= read -r rule; do
    # shellcheck disable=SC2086 # a list
    iptables -w "$1" $rule || true
  done < <(tr ';' '\n' <<<"$2")
}

fill() {
  local path="$CLUSTER/volumes/$1"
  mountpoint -q "$path" || die "$path has no file system of its own: VOLUME_SIZE=2G make up"
  back="rm -f '$path/ballast'"
  # Whatever is left over by the pieces before is filled by smaller ones.
  dd if=/dev/zero of="$path/ballast" bs=1M 2>/dev/null || true
  dd if=/dev/zero bs=4k 2>/dev/null >>"$path/ballast" || true
  sync -f "$path"
  sleep "$2"
}

case "${1:-} $#" in
  "freeze 4") freeze "$2" "$3" "$4" ;;
  "slow-api 2") slow_api "$2" ;;
  "cut 3") cut_node "$2" "$3" ;;
  "fill 3") fill "$2" "$3" ;;
  *) usage ;;
esac
