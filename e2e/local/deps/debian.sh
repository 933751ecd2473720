# Debian packages, installed only when one is missing and without starting the services that they bring.

DEBIAN_PACKAGES="containerd runc containernetworking-plugins iptables iproute2 conntrack ipset ethtool socat etcd-server
  buildah mmdebstrap jq shellcheck openssl maven openjdk-17-jdk-headless pkg-config libssl-dev zlib1g-dev cmake make g++
  ca-certificates procps util-linux"

deps_debian() {
  local missing=() package policy=/usr/sbin/policy-rc.d made=no
  for package in $DEBIAN_PACKAGES; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  echo "missing: ${missing[*]}"
  # containerd and etcd bring services; the harness starts its own copies and must not leave the machine's running.
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    made=yes
  fi
  apt-get -q update
  DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "${missing[@]}"
  [ "$made" = no ] || rm -f "$policy"
}
