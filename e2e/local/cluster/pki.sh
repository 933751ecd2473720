# The cluster's certificates, made anew with every cluster.

pki_ca() { # pki_ca NAME
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=kith local $1" \
    -keyout "$1.key" -out "$1.crt" 2>/dev/null
}

pki_cert() { # pki_cert CA NAME SUBJECT [SAN]
  local ca="$1" name="$2" subject="$3" san="${4:-}"
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$subject" -keyout "$name.key" -out "$name.csr" 2>/dev/null
  openssl x509 -req -in "$name.csr" -CA "$ca.crt" -CAkey "$ca.key" -CAcreateserial -days 3650 -out "$name.crt" -extfile <(
    echo "keyUsage=digitalSignature"
    echo "extendedKeyUsage=serverAuth,clientAuth"
    [ -z "$san" ] || echo "subjectAltName=$san"
  ) 2>/dev/null
  rm "$name.csr"
}

pki_kubeconfig() { # pki_kubeconfig FILE CERT [NAMESPACE]: self-contained, so that it can be copied
  local file="$1" cert="$2" namespace="${3:-default}"
  cat >"$file" <<END
apiVersion: v1
kind: Config
current-context: kith-local
contexts: [{name: kith-local, context: {cluster: kith-local, user: kith-local, namespace: $namespace}}]
clusters: [{name: kith-local, cluster: {server: "$API_URL", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: kith-local, user: {client-certificate-data: $(base64 -w0 "$cert.crt"), client-key-data: $(base64 -w0 "$cert.key")}}]
END
  chmod 600 "$file"
}

# In a subshell: the umask and the folder are its own.
pki_up() (
  local node
  mkdir -p "$CLUSTER/pki"
  cd "$CLUSTER/pki" || return
  umask 077
  pki_ca ca
  pki_ca front-proxy-ca
  pki_ca etcd-ca
  pki_cert etcd-ca etcd /CN=etcd "IP:$NET_CONTROL"
  pki_cert etcd-ca etcd-client /CN=kube-apiserver
  pki_cert ca apiserver /CN=kube-apiserver \
    "IP:$NET_CONTROL,IP:$NET_API_SERVICE,IP:127.0.0.1,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost"
  pki_cert ca kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
  pki_cert front-proxy-ca front-proxy /CN=front-proxy-client
  pki_cert ca admin /O=system:masters/CN=admin
  pki_cert ca controller-manager /CN=system:kube-controller-manager
  pki_cert ca scheduler /CN=system:kube-scheduler
  pki_cert ca proxy /CN=system:kube-proxy
  openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out service-account.key 2>/dev/null
  openssl pkey -in service-account.key -pubout -out service-account.pub
  for node in controller-manager scheduler proxy; do pki_kubeconfig "$node.kubeconfig" "$node"; done
  for node in $(seq "$NODES"); do
    pki_cert ca "kubelet-$node" "/O=system:nodes/CN=system:node:$(node_name "$node")" "IP:$(node_ip "$node"),DNS:$(node_name "$node")"
    pki_kubeconfig "kubelet-$node.kubeconfig" "kubelet-$node"
  done
  pki_kubeconfig "$CLUSTER/kubeconfig" admin kith-demo
)
