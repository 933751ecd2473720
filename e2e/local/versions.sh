# Every version that the harness pins, in one place.
# shellcheck disable=SC2034 # used by the scripts that source this file

KUBE_VERSION=v1.34.4
COREDNS_VERSION=v1.15.0
HELM_VERSION=v4.3.1
VALKEY_VERSION=9.1.2
KAFKA_VERSION=4.3.1
