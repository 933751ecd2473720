#!/usr/bin/env bash
# Where the platform listens. Run it for `make env`: shell assignments on stdout and nothing else; sourced, it only defines.

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  # shellcheck source=lib.sh
  . "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
  CLUSTER="$KITH_CACHE/cluster"
  [ -f "${KITH_KUBECONFIG:-$CLUSTER/kubeconfig}" ] || die "no cluster runs here: make up"
fi

# The NodePorts of examples/demo.yaml (docs/names.md).
PORT_API=30080
PORT_WS=30081
# The whole URL, as the Gateway's status shows it: a client connects to it as it stands.
PATH_WS=/v1/connect
PORT_BUSINESS=30443
PORT_KAFKA=30094
CLIENT_SECRET=demo-business-client

platform_kubeconfig() { echo "${KITH_KUBECONFIG:-$CLUSTER/kubeconfig}"; }
kith_kubectl() { "$BIN/kubectl" --kubeconfig="$(platform_kubeconfig)" "$@"; }

# The local cluster's NodePorts answer on the loopback address, another cluster's on its nodes.
kith_host() {
  if [ -z "${KITH_KUBECONFIG:-}" ]; then
    echo 127.0.0.1
  else
    kith_kubectl get nodes -o 'jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}'
  fi
}

# Beside the local cluster's state, so that `down` takes it along; another cluster's has a folder of its own.
client_folder() {
  if [ -z "${KITH_KUBECONFIG:-}" ]; then echo "$CLUSTER/client"; else echo "$KITH_CACHE/client"; fi
}

# The business line's certificate as files, read anew each time: certificates rotate.
client_files() {
  local folder secret name
  folder="$(client_folder)"
  secret="$(kith_kubectl -n kith-demo get secret "$CLIENT_SECRET" -o json)" || {
    say "error: the platform is not up (make up), or it has no Secret kith-demo/$CLIENT_SECRET yet"
    return 1
  }
  mkdir -p "$folder"
  chmod 700 "$folder"
  for name in ca.crt tls.crt tls.key; do
    jq -r --arg name "$name" '.data[$name] // empty' <<<"$secret" | base64 -d >"$folder/.$name.part"
    mv "$folder/.$name.part" "$folder/$name"
  done
}

env_print() {
  local folder host
  folder="$(client_folder)"
  host="$(kith_host)"
  cat <<END
export KUBECONFIG='$(platform_kubeconfig)'
export KUBECACHEDIR='$KUBECACHEDIR'
export KITH_API='http://$host:$PORT_API'
export KITH_WS='ws://$host:$PORT_WS$PATH_WS'
export KITH_BUSINESS='$host:$PORT_BUSINESS'
export KITH_BUSINESS_CA='$folder/ca.crt'
export KITH_BUSINESS_CERT='$folder/tls.crt'
export KITH_BUSINESS_KEY='$folder/tls.key'
export KITH_KAFKA='$host:$PORT_KAFKA'
END
}

# kith-e2e with the platform's addresses, whatever the caller's environment says.
kith_e2e() { (eval "$(env_print)" && exec "$KITH_CACHE/target/release/kith-e2e" "$@"); }

# With the files of the last time, which saves asking the cluster; should they be of yesterday's CA, once more with new ones.
token_print() {
  local args=(token --user "$USER" --device "${DEVICE:-d1}" --platform "${PLATFORM:-web}")
  if [ -f "$(client_folder)/tls.key" ] && kith_e2e "${args[@]}" 2>/dev/null; then return; fi
  client_files
  kith_e2e "${args[@]}"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  case "${1:-print}" in
    print)
      client_files
      env_print
      ;;
    token) token_print ;;
    status)
      kith_kubectl get nodes
      kith_kubectl get kith -n kith-demo
      kith_kubectl get pods -A
      ;;
    *) die "env.sh print|token|status" ;;
  esac
fi
