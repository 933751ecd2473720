#!/usr/bin/env bash
# Writes anew every committed file that follows from others: from the table of services the subcommands, settings, manifests and tables of
# documentation; from the .proto files the gRPC code; from the types the definitions, their reference and the charts' tables; the API's
# description; the schemas and pages of the contract; and the objects that the operator's tests compare, but never those of a version that is out.
#
# Tests fail while one of these files is not what it follows from. Look at the differences before they are committed: another object in
# operator/tests/golden means that pods of running platforms are replaced.

# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
export CARGO_TARGET_DIR="$KITH_CACHE/target"
cd "$KITH_ROOT"

# rewrite COMMAND…: a test that writes what is out of date fails then, and has nothing to say the next time.
rewrite() { "$@" || "$@"; }

stage generate-services cargo servicegen
# The table names the packages, and everything else is compiled with their code.
stage generate-proto rewrite cargo protogen
stage generate-definitions cargo crdgen
stage generate-contract rewrite env KITH_BLESS=1 cargo test --release -p kith-contract
stage generate-openapi rewrite cargo test --release -p kith-api --test openapi
stage generate-objects env KITH_BLESS=1 cargo test --release -p kith-operator --test it golden::
git status --short
