# Installs the platform on a running cluster and sees a message through: binaries, images, charts, sample, first message.
#
# KITH_KUBECONFIG=FILE installs into that cluster instead of the local one. Its nodes cannot see local images: KITH_IMAGES=PREFIX
# says where kith and kith-operator can be pulled from (with KITH_TAG, else the charts' version); without it the charts' defaults hold.

SAMPLE_NAMESPACE=kith-demo
SYSTEM_NAMESPACE=kith-system
READY_WITHIN=300

# shellcheck source=env.sh
. "$KITH_LOCAL/env.sh"

# The operator, ready for any ChatCluster.
operator_up() {
  local node
  stage cargo-build cargo_build
  if [ -z "${KITH_KUBECONFIG:-}" ]; then
    stage images-engines images_engines
    stage images-kith images_kith
    image_sizes
    for node in $(seq "$NODES"); do stage "images-import-$node" image_import "$node" valkey kafka kith kith-operator; done
  fi
  stage charts charts_up
}

platform_up() {
  operator_up
  stage sample sample_up
  say "  … waiting for the platform to be Ready"
  local begin=$SECONDS
  wait_ready
  say "  ✓ ready: $((SECONDS - begin))s"
  stage discovery discovery_fresh
  stage first-message first_message
  say "    $(tail -n 1 "$STAGE_LOGS/first-message.log")"
  addresses
}

# All binaries at once, by the command that `test.sh` gives too, so that the second of them finds everything built. Dependencies have the same
# features however few are built (.cargo/unify).
cargo_build() {
  cd "$KITH_ROOT"
  CARGO_TARGET_DIR="$KITH_CACHE/target" gently cargo build --release --workspace --bins --locked
}

image_sizes() {
  local name size limit
  for name in kith kith-operator valkey kafka; do
    size="$(image_megabytes "$name")"
    limit=""
    case "$name" in kith*) [ "$size" -le 60 ] || limit=" (more than the 60 MB it should be)" ;; esac
    say "    $(image_ref "$name") $size MB$limit"
  done
}

charts_up() {
  local values=() tag
  if [ -z "${KITH_KUBECONFIG:-}" ]; then
    values=(--set "images.kith=$(image_ref kith)" --set "images.operator=$(image_ref kith-operator)"
      --set "images.valkey=$(image_ref valkey)" --set "images.kafka=$(image_ref kafka)" --set "previous.version=")
  elif [ -n "${KITH_IMAGES:-}" ]; then
    tag="${KITH_TAG:-$(awk '$1 == "appVersion:" { gsub(/"/, "", $2); print $2 }' "$KITH_ROOT/charts/kith-operator/Chart.yaml")}"
    values=(--set "images.kith=$KITH_IMAGES/kith:$tag" --set "images.operator=$KITH_IMAGES/kith-operator:$tag")
  fi
  # A run that was killed in an install leaves it pending for ever, and Helm refuses the next.
  kith_kubectl -n "$SYSTEM_NAMESPACE" delete secret -l 'owner=helm,name in (kith-crds,kith-operator),status in (pending-install,pending-upgrade,pending-rollback)'
  kith_helm upgrade --install kith-crds "$KITH_ROOT/charts/kith-crds" -n "$SYSTEM_NAMESPACE" --create-namespace
  kith_helm upgrade --install kith-operator "$KITH_ROOT/charts/kith-operator" -n "$SYSTEM_NAMESPACE" --wait --timeout 120s "${values[@]}" || {
    kith_kubectl -n "$SYSTEM_NAMESPACE" get events --sort-by=.lastTimestamp | tail -n 15
    kith_kubectl -n "$SYSTEM_NAMESPACE" logs deployment/kith-operator --tail=20
    kith_kubectl -n "$SYSTEM_NAMESPACE" get pods
    return 1
  }
}

kith_helm() {
  HELM_CACHE_HOME="$KITH_CACHE/helm" HELM_CONFIG_HOME="$KITH_CACHE/helm" HELM_DATA_HOME="$KITH_CACHE/helm" \
    "$BIN/helm" --kubeconfig "$(platform_kubeconfig)" "$@"
}

# Charts' CRDs and webhooks are a moment younger than their release: a first refusal is not the last word.
sample_up() {
  local manifest="$STAGE_LOGS/sample.yaml"
  sed "s/^\( *brokers:\) 1\$/\1 ${BROKERS:-1}/" "$KITH_ROOT/examples/demo.yaml" >"$manifest"
  await 60 "the sample to be accepted" kith_kubectl apply --server-side --force-conflicts -f "$manifest"
}

# kubectl remembers for hours which kinds a server has, and `kubectl get kith` asks that memory alone. What was remembered before the CRDs were
# there, by these scripts or by whoever looked at a cluster at this address, is of no use any more.
discovery_fresh() {
  local server
  server="$(kith_kubectl config view --minify -o 'jsonpath={.clusters[0].cluster.server}')"
  server="$(sed -E 's#^https?://##; s#[^A-Za-z0-9_/.]#_#g' <<<"$server")"
  discovery_forget "$KUBECACHEDIR" "$server"
  discovery_forget "$HOME/.kube/cache" "$server"
  await 60 "kubectl to know the category kith" kith_kubectl -n "$SAMPLE_NAMESPACE" get kith
}

discovery_forget() { # discovery_forget CACHE SERVER: what is remembered of that one server
  [ -n "$2" ] || return 0
  rm -rf "$1/discovery/$2"
}

# One line per condition: "ChatCluster/demo Ready=False Reason: message".
conditions() {
  kith_kubectl -n "$SAMPLE_NAMESPACE" get chatclusters.kith.dev,storageshards.kith.dev,gateways.kith.dev -o json |
    jq -r '.items[] | . as $o | .status.conditions[]? |
      "\($o.kind)/\($o.metadata.name) \(.type)=\(.status)\(if .observedGeneration == $o.metadata.generation then "" else " (older)" end) \(.reason): \(.message)"'
}

is_ready() {
  grep -q '^ChatCluster/demo Ready=True [^(]' <<<"$1" && grep -q '^Gateway/edge Ready=True [^(]' <<<"$1"
}

# Prints conditions as they change, so that one sees what it is waiting for.
wait_ready() {
  local end=$((SECONDS + READY_WITHIN)) now="" before=""
  while true; do
    now="$(conditions 2>/dev/null || true)"
    if [ "$now" != "$before" ]; then
      comm -13 <(sort <<<"$before") <(sort <<<"$now") | cut -c1-160 | sed 's/^/    /' >&2
      before="$now"
    fi
    if is_ready "$now"; then return 0; fi
    if [ "$SECONDS" -ge "$end" ]; then
      diagnose >"$LOGS/up/diagnosis.log" 2>&1 || true
      say "  ✗ not Ready after ${READY_WITHIN}s. Pods:"
      kith_kubectl get pods -A 2>&1 | grep -v ' Running .* 0 ' | sed 's/^/    | /' >&2 || true
      die "the platform did not become Ready; events, pods and logs are in $LOGS/up/diagnosis.log"
    fi
    sleep 0.5
  done
}

# Everything that one looks at first.
diagnose() {
  local pod
  kith_kubectl get kith -A -o yaml
  kith_kubectl get pods,pvc -A -o wide
  kith_kubectl get events -A --sort-by=.lastTimestamp
  kith_kubectl -n "$SAMPLE_NAMESPACE" describe pods
  echo "=== dropped connections" && dropped_connections || true
  for pod in $(kith_kubectl -n "$SYSTEM_NAMESPACE" get pods -o name); do
    echo "=== $pod" && kith_kubectl -n "$SYSTEM_NAMESPACE" logs "$pod" --tail=300 || true
  done
  for pod in $(kith_kubectl -n "$SAMPLE_NAMESPACE" get pods -o name); do
    echo "=== $pod" && kith_kubectl -n "$SAMPLE_NAMESPACE" logs "$pod" --all-containers --tail=100 || true
  done
}

# Connections that the machine's or a pod's network stack dropped: what a client sees of them is a connect that never ends.
dropped_connections() {
  local name
  local counters='/^TcpExt:/ { if (!n) { n = split($0, names) } else { for (i = 2; i <= n; i++)
    if (names[i] ~ /^(SyncookiesSent|ListenOverflows|ListenDrops|TCPReqQFullDrop|TCPBacklogDrop|PAWSEstabRejected|TCPTimeWaitOverflow|TCPSynRetrans|TCPAbortOnMemory)$/ && $i > 0)
      printf " %s=%s", names[i], $i; print "" } }'
  echo "the machine:$(awk "$counters" /proc/net/netstat)"
  for name in $(ip netns list | awk '{ print $1 }'); do
    echo "$name:$(ip netns exec "$name" awk "$counters" /proc/net/netstat) $(ip -n "$name" -br -4 addr | awk '$1 != "lo" { print $3 }')"
  done
  echo "connection tracking (insert_failed, drop, early_drop are those that hurt):"
  cat /proc/net/stat/nf_conntrack
}

# alice writes to bob, who waits on a WebSocket.
first_message() {
  client_files
  kith_e2e smoke
}

addresses() {
  local host
  host="$(kith_host)"
  cat <<END

  API        http://$host:$PORT_API
  WebSocket  ws://$host:$PORT_WS$PATH_WS
  ImBusiness $host:$PORT_BUSINESS (gRPC, mTLS)
  Kafka      $host:$PORT_KAFKA
  kubectl    KUBECONFIG=$(platform_kubeconfig)
  all of it  eval "\$(make -s env)"

END
}
