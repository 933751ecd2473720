# The parts of the local cluster and the settings that they share.
# shellcheck disable=SC2034 # used by the parts

CLUSTER="$KITH_CACHE/cluster"
NODES="${NODES:-$(cat "$CLUSTER/node-count" 2>/dev/null || echo 1)}"

# kubectl on the local cluster and on no other, whatever KUBECONFIG says.
kube() { "$BIN/kubectl" --kubeconfig="$CLUSTER/kubeconfig" "$@"; }

for part in process network pki control node addons start clean; do
  # shellcheck disable=SC1090 # the parts beside this file
  . "$KITH_LOCAL/cluster/$part.sh"
done
# shellcheck source=../images.sh
. "$KITH_LOCAL/images.sh"
