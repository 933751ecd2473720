# What is built from Go modules, since there is no registry to pull images from: Kubernetes, CoreDNS and Helm.
#
# A binary is named by its version and a hash of its module, so that a changed pin is built and an unchanged one is found.

go_build() { # go_build NAME VERSION LDFLAGS PACKAGE → $BIN/NAME-VERSION
  local name="$1" version="$2" ldflags="$3" package="$4" out key
  out="$BIN/$name-$version"
  key="$(find "$KITH_LOCAL/$name" -name 'go.*' -o -name '*.go' | LC_ALL=C sort | xargs cat | sha256sum | cut -c1-16)"
  if [ -x "$out" ] && fresh "$out.key" "$key"; then return; fi
  (cd "$KITH_LOCAL/$name" && CGO_ENABLED=0 GOFLAGS=-buildvcs=false gently go build -trimpath -ldflags "-s -w $ldflags" -o "$out.part" "$package")
  mv "$out.part" "$out"
  done_with "$out.key" "$key"
}

deps_kube() {
  local component flags="" variable=k8s.io/component-base/version minor
  minor="${KUBE_VERSION#v1.}"
  flags="-X $variable.gitVersion=$KUBE_VERSION -X $variable.gitMajor=1 -X $variable.gitMinor=${minor%%.*}"
  go_build kube "$KUBE_VERSION" "$flags" .
  for component in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
    ln -sfn "kube-$KUBE_VERSION" "$BIN/$component"
  done
}

deps_coredns() {
  go_build coredns "$COREDNS_VERSION" "" .
  ln -sfn "coredns-$COREDNS_VERSION" "$BIN/coredns"
}

deps_helm() {
  go_build helm "$HELM_VERSION" "-X helm.sh/helm/v4/internal/version.version=$HELM_VERSION" helm.sh/helm/v4/cmd/helm
  ln -sfn "helm-$HELM_VERSION" "$BIN/helm"
}
