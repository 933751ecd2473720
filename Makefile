# Each target is a script below e2e/local, which says what it does at its top.

LOCAL := e2e/local

.PHONY: help up down env token status test generate nightly bench bench-cluster bench-operator chaos upgrade

help:
	@echo 'make up       builds everything, starts a local Kubernetes (NODES=3 for three nodes; KITH_KUBECONFIG=FILE uses yours),'
	@echo '              installs Kith with the sample, sends a message and prints the addresses'
	@echo 'make env      shell assignments of the addresses: eval "$$(make -s env)"'
	@echo 'make token    a client token: make -s token USER=alice DEVICE=d1 PLATFORM=ios'
	@echo 'make status   nodes, Kith objects, pods'
	@echo 'make down     takes the local cluster down and leaves nothing behind'
	@echo 'make test     the whole check, ending in one line: N passed, N failed'
	@echo 'make generate writes anew what follows from the table of services, the .proto files and the types'
	@echo 'make bench    measures storage alone and the whole path on local processes, without Kubernetes'
	@echo 'make bench-cluster   measures the platform that make up runs, and what each of its processes uses'
	@echo 'make bench-operator  measures one operator over 300 ChatClusters with imitated engines'
	@echo 'make chaos    fifteen minutes of faults under load on a local cluster of three nodes, ending in a table'
	@echo 'make upgrade  the previous release, upgraded under load and taken back, on a fresh local cluster'
	@echo 'make nightly  the same with what takes too long for every change'

up:
	@$(LOCAL)/up.sh

down:
	@$(LOCAL)/down.sh

env:
	@$(LOCAL)/env.sh print

token:
	@USER='$(USER)' DEVICE='$(DEVICE)' PLATFORM='$(PLATFORM)' $(LOCAL)/env.sh token

status:
	@$(LOCAL)/env.sh status

test:
	@$(LOCAL)/test.sh

generate:
	@$(LOCAL)/generate.sh

nightly:
	@NIGHTLY=1 $(LOCAL)/test.sh

bench:
	@$(LOCAL)/bench.sh

bench-cluster:
	@$(LOCAL)/bench-cluster.sh

bench-operator:
	@$(LOCAL)/bench-operator.sh

chaos:
	@$(LOCAL)/chaos.sh

upgrade:
	@$(LOCAL)/upgrade.sh
