# Every process of the local cluster lives in a cgroup of its own below `kith`, so that what was started can always be found and
# ended, even when the `up` that started it was killed: no pid files that go stale, and never a foreign process.
#
#   kith/daemons/NAME   etcd, kube-apiserver, …, containerd-1 (with its shims), kubelet-1
#   kith/node-N         the pods of node N (the kubelet's cgroupRoot)

# The hierarchy that tracks processes: the unified one, or `pids` where the machine still has version 1.
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
  CGROUP_TRACK=/sys/fs/cgroup
  CGROUP_CPU=/sys/fs/cgroup
else
  CGROUP_TRACK=/sys/fs/cgroup/pids
  CGROUP_CPU="$(awk '$3 == "cgroup" && ("," $4 ",") ~ /,cpu,/ { print $2; exit }' /proc/mounts)"
fi

# Outside a group each thread counts as much as the whole of one. Left like that, all pods of all nodes together got as much of a busy
# core as a single thread of a kubelet: sockets went unserved for a second whenever pods started. A node of one's own has its daemons
# in one group beside that of the pods; so here, and the whole cluster weighs as much as four threads of whatever else runs. The daemons
# of all nodes and the control plane, which would be elsewhere, count half as much as the pods of one node.
# shellcheck disable=SC2034 # used by the scripts beside this one
CGROUP_SHARES=4096
# shellcheck disable=SC2034 # the same
CGROUP_DAEMONS=512

cgroup_hierarchies() {
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    echo /sys/fs/cgroup
  else
    awk '$3 ~ /^cgroup2?$/ { print $2 }' /proc/mounts
  fi
}

# A cpuset without CPUs or memory nodes refuses every process, and a new one starts out empty (version 1).
cgroup_make() {
  local path="$1" root part at file
  for root in $(cgroup_hierarchies); do
    at="$root"
    for part in ${path//\// }; do
      [ ! -f "$at/cgroup.subtree_control" ] || echo "+cpu +cpuset +memory +pids +io" >"$at/cgroup.subtree_control" 2>/dev/null || true
      mkdir -p "$at/$part"
      for file in cpuset.cpus cpuset.mems; do
        [ ! -f "$at/$file" ] || [ -n "$(cat "$at/$part/$file" 2>/dev/null)" ] || cat "$at/$file" >"$at/$part/$file" 2>/dev/null || true
      done
      at="$at/$part"
    done
  done
}

# cgroup_weigh GROUP SHARES: its part of busy cores beside its siblings, 1024 being the usual.
cgroup_weigh() {
  local at="$CGROUP_CPU/$1"
  if [ -f "$at/cpu.shares" ]; then
    echo "$2" >"$at/cpu.shares"
  elif [ -f "$at/cpu.weight" ]; then
    echo "$(($2 * 100 / 1024))" >"$at/cpu.weight"
  fi
}

# spawn NAME COMMAND…: starts a daemon that outlives this script, logging to logs/NAME.log.
spawn() {
  local name="$1" group="kith/daemons/$1"
  shift
  cgroup_make "$group"
  mkdir -p "$CLUSTER/logs"
  (
    echo "$BASHPID" >"$CGROUP_TRACK/$group/cgroup.procs"
    [ -z "$CGROUP_CPU" ] || echo "$BASHPID" >"$CGROUP_CPU/$group/cgroup.procs"
    exec 9>&- 8>&-
    exec setsid "$@"
  ) >>"$CLUSTER/logs/$name.log" 2>&1 </dev/null &
  disown
}

# pids_in GROUP: the processes of a group below kith and of everything in it.
pids_in() {
  local file
  while IFS= read -r file; do cat "$file" 2>/dev/null || true; done < <(find "$CGROUP_TRACK/kith/$1" -name cgroup.procs 2>/dev/null)
}

alive() { [ -n "$(pids_in "daemons/$1")" ]; }

# stop GROUP SECONDS: asks, waits, then insists.
stop() {
  local group="$1" limit="$2" end pids
  end=$((SECONDS + limit))
  pids="$(pids_in "$group")"
  # shellcheck disable=SC2086 # a list
  [ -z "$pids" ] || kill -TERM $pids 2>/dev/null || true
  while [ -n "$pids" ] && [ "$SECONDS" -lt "$end" ]; do
    sleep 0.1
    pids="$(pids_in "$group")"
  done
  end=$((SECONDS + 10))
  while pids="$(pids_in "$group")" && [ -n "$pids" ] && [ "$SECONDS" -lt "$end" ]; do
    # shellcheck disable=SC2086 # a list
    kill -KILL $pids 2>/dev/null || true
    sleep 0.05
  done
}

cgroup_remove() {
  local root
  for root in $(cgroup_hierarchies); do
    [ ! -d "$root/kith" ] || find "$root/kith" -depth -type d -exec rmdir {} + 2>/dev/null || true
  done
}
