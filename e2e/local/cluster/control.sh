# The control plane: etcd, API server, controller manager, scheduler, and kube-proxy for all nodes (they share one network namespace).

control_up() {
  etcd_up
  apiserver_up
  spawn kube-controller-manager "$BIN/kube-controller-manager" --kubeconfig="$CLUSTER/pki/controller-manager.kubeconfig" \
    --bind-address="$NET_CONTROL" --leader-elect=false --use-service-account-credentials=true \
    --root-ca-file="$CLUSTER/pki/ca.crt" --service-account-private-key-file="$CLUSTER/pki/service-account.key" \
    --cluster-signing-cert-file="$CLUSTER/pki/ca.crt" --cluster-signing-key-file="$CLUSTER/pki/ca.key" \
    --cluster-name=kith-local --controllers='*' --flex-volume-plugin-dir="$CLUSTER/flex" --profiling=false
  spawn kube-scheduler "$BIN/kube-scheduler" --kubeconfig="$CLUSTER/pki/scheduler.kubeconfig" --bind-address="$NET_CONTROL" \
    --leader-elect=false --profiling=false
  spawn kube-proxy "$BIN/kube-proxy" --kubeconfig="$CLUSTER/pki/proxy.kubeconfig" --hostname-override="$(node_name 1)" \
    --proxy-mode=iptables --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 \
    --oom-score-adj=0 --healthz-bind-address="$NET_CONTROL:10256" --metrics-bind-address="$NET_CONTROL:10249" \
    --iptables-min-sync-period=100ms
}

etcd_up() {
  # Losing the local cluster in a power cut is fine, waiting for the disk at every write is not.
  local fsync=""
  if /usr/bin/etcd --help 2>&1 | grep -q -- --unsafe-no-fsync; then fsync=--unsafe-no-fsync; fi
  spawn etcd /usr/bin/etcd --name=kith --data-dir="$CLUSTER/etcd" --listen-client-urls="https://$NET_CONTROL:2379" \
    --advertise-client-urls="https://$NET_CONTROL:2379" --listen-peer-urls="http://127.0.0.1:0" --listen-metrics-urls="" \
    --client-cert-auth --trusted-ca-file="$CLUSTER/pki/etcd-ca.crt" --cert-file="$CLUSTER/pki/etcd.crt" --key-file="$CLUSTER/pki/etcd.key" \
    $fsync --quota-backend-bytes=1073741824
}

apiserver_up() {
  # What changes objects is logged in short form: tests count what the operator writes.
  cat >"$CLUSTER/audit-policy.yaml" <<END
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ["system:serviceaccounts:kith-system"], verbs: [create, update, patch, delete, deletecollection]}
- {level: None}
END
  spawn kube-apiserver "$BIN/kube-apiserver" --advertise-address="$NET_CONTROL" --bind-address="$NET_CONTROL" --secure-port=6443 \
    --etcd-servers="https://$NET_CONTROL:2379" --etcd-cafile="$CLUSTER/pki/etcd-ca.crt" \
    --etcd-certfile="$CLUSTER/pki/etcd-client.crt" --etcd-keyfile="$CLUSTER/pki/etcd-client.key" \
    --client-ca-file="$CLUSTER/pki/ca.crt" --tls-cert-file="$CLUSTER/pki/apiserver.crt" --tls-private-key-file="$CLUSTER/pki/apiserver.key" \
    --kubelet-client-certificate="$CLUSTER/pki/kubelet-client.crt" --kubelet-client-key="$CLUSTER/pki/kubelet-client.key" \
    --kubelet-certificate-authority="$CLUSTER/pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --requestheader-client-ca-file="$CLUSTER/pki/front-proxy-ca.crt" --requestheader-allowed-names=front-proxy-client \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- --proxy-client-cert-file="$CLUSTER/pki/front-proxy.crt" \
    --proxy-client-key-file="$CLUSTER/pki/front-proxy.key" \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$CLUSTER/pki/service-account.pub" \
    --service-account-signing-key-file="$CLUSTER/pki/service-account.key" \
    --service-cluster-ip-range="$NET_SERVICES" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --audit-policy-file="$CLUSTER/audit-policy.yaml" --audit-log-path="$CLUSTER/logs/audit.log" --audit-log-maxsize=100 \
    --audit-log-maxbackup=1 --profiling=false --cert-dir="$CLUSTER/pki"
  await 60 "the API server ($CLUSTER/logs/kube-apiserver.log)" kube get --raw=/readyz
}

control_healthy() {
  local name
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy volumes; do alive "$name" || return 1; done
  kube get --raw=/readyz
}
