# The addresses of the local cluster. One bridge holds the control plane's and the nodes' addresses (it has no ports: the
# addresses only have to exist on the machine), one bridge per node holds its pods.
# shellcheck disable=SC2034 # used by the scripts that source this file

NET_BRIDGE=kith0
NET_CONTROL=10.41.0.1
NET_SERVICES=10.43.0.0/16
NET_API_SERVICE=10.43.0.1
NET_DNS=10.43.0.10
API_URL="https://$NET_CONTROL:6443"

node_name() { echo "node-$1"; }
node_ip() { echo "10.41.0.$((10 + $1))"; }
node_pods() { echo "10.42.$1.0/24"; }
node_bridge() { echo "kith-pod$1"; }

SYSCTLS="net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1 net.ipv4.conf.all.route_localnet=1
  fs.inotify.max_user_instances=8192 fs.inotify.max_user_watches=524288"

network_up() {
  local node setting key
  modprobe br_netfilter 2>/dev/null || true
  modprobe overlay 2>/dev/null || true
  ip link add "$NET_BRIDGE" type bridge 2>/dev/null || true
  ip addr replace "$NET_CONTROL/24" dev "$NET_BRIDGE"
  for node in $(seq "$NODES"); do ip addr replace "$(node_ip "$node")/24" dev "$NET_BRIDGE"; done
  ip link set "$NET_BRIDGE" up
  # What a setting was before, so that network_down can put it back; the first run wins.
  for setting in $SYSCTLS; do
    key="${setting%%=*}"
    if ! grep -qs "^$key=" "$CLUSTER/sysctl.before"; then
      echo "$key=$(sysctl -n "$key")" >>"$CLUSTER/sysctl.before"
    fi
    if [ "$(sysctl -n "$key")" -lt "${setting#*=}" ]; then sysctl -q -w "$setting"; fi
  done
}

network_down() {
  local link tool rules
  while IFS= read -r link; do
    ip link delete "$link" 2>/dev/null || true
  done < <(ip -o link show type bridge | awk -F': ' '$2 == "'"$NET_BRIDGE"'" || $2 ~ /^kith-pod[0-9]+$/ { print $2 }')
  # One restore takes out the chains of kube-proxy, kubelet and the CNI plugins with every rule that uses them.
  for tool in iptables ip6tables; do
    rules="$("$tool-save" 2>/dev/null || true)"
    # And what a fault that was killed has left (fault.sh cut).
    if grep -qE '^:(KUBE|CNI)-|^-A .*-i kith-pod[0-9]+ .*-j DROP' <<<"$rules"; then
      grep -vE '^:(KUBE|CNI)-|^-A (KUBE|CNI)-| -[jg] (KUBE|CNI)-|^-A .*-i kith-pod[0-9]+ .*-j DROP' <<<"$rules" | "$tool-restore"
    fi
  done
  if [ -f "$CLUSTER/sysctl.before" ]; then sysctl -q -p "$CLUSTER/sysctl.before" || true; fi
}
