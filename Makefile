# Quipu. `make run` and `make test` do all the set-up themselves; `make help` lists the rest.

CARGO ?= cargo
BIN := target/release/quipu
DATA_DIR ?= ./quipu-data
DEMO_DIR ?= ./quipu-data/demo-modulo
MINUTES ?= 10

KUBERNETES_SCRIPTS := $(addprefix kubernetes/tests/,run server controllers containers backup lib.sh control-plane.sh)

.PHONY: help run demo-modulo build plugins plugin-python plugin-js guests setup protoc services services-down cluster sim model test repeat torture image image-from-binary test-kubernetes test-containers test-backup bench bench-policies bench-cluster lint ci clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z%<>-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## Build everything and serve on :8080 with the store in ./quipu-data
	$(BIN) serve --data-dir $(DATA_DIR)

demo-modulo: build ## Serve three modulo shards on 4000 and 3000-3002
	$(BIN) serve --data-dir $(DEMO_DIR) --shards 3 --listen 127.0.0.1:4000 --compat-shard-listen 127.0.0.1:3000

build: protoc plugins ## Build the program: target/release/quipu
	$(CARGO) build --release --locked -p quipu

plugins: ## Build the built-in policies as WebAssembly components
	$(MAKE) -C plugins all

plugin-%: ## Build one built-in policy, as in make plugin-least-cpu
	$(MAKE) -C plugins plugin-$*

plugin-python: ## Build and test the example in Python (needs python3)
	$(MAKE) -C plugins plugin-python

plugin-js: ## Build and test the example in JavaScript (needs node and npm)
	$(MAKE) -C plugins plugin-js

guests: ## Build the hostile guests of the tests
	$(MAKE) -C tests/guests all

# etcd's client is built with it.
protoc:
	@.ci/setup build

setup: ## Install what tests and bench need beyond a Rust toolchain
	.ci/setup

services: ## Start etcd and Cassandra on loopback; UP="--cassandra-nodes 3" for three nodes
	.ci/setup services
	tests/services/up $(UP)

cluster: build ## Start etcd, Cassandra and three nodes on 8081 to 8083; Ctrl-C stops the nodes
	.ci/setup services
	tests/services/cluster $(BIN)

sim: plugins ## Simulate writers, takeovers and producers; SEEDS=10000 for that many worlds
	QUIPU_SIM_SEEDS=$(or $(SEEDS),1000) $(CARGO) test --release --locked --workspace --test simulation

services-down: ## Stop what make services started
	tests/services/down

model: ## Check the model of the journal within larger bounds (tests/model), some minutes
	$(CARGO) run --release --locked --manifest-path tests/model/Cargo.toml

test: setup ## Run everything that the project tests, with the minutes of each part
	.ci/test

repeat: setup ## Repeat the whole-program and Kubernetes suites under load of all cores; ROUNDS=5
	.ci/repeat $(or $(ROUNDS),5)

torture: build setup ## Faults and partitions of nodes and services in any order under load, for MINUTES=10; as root
	.ci/setup services
	tests/services/up --fetch >/dev/null
	QUIPU_TEST_OWN_PORTS=24860 QUIPU_TORTURE_MINUTES=$(MINUTES) \
		$(CARGO) test --release --locked --workspace --test cluster torture -- --ignored --nocapture

test-kubernetes: ## Check the manifests; QUIPU_KUBERNETES=1 builds a real control plane for it first
	kubernetes/tests/run

test-containers: ## Run the image of the built program as a cluster of three containers, and disturb it
	.ci/setup services containers
	kubernetes/tests/run containers

test-backup: build ## Back a cluster up, destroy it and restore it, by the commands of kubernetes/README.md
	kubernetes/tests/run backup

image: ## Build the container image in a container (docker, podman or buildah)
	kubernetes/image/build

image-from-binary: ## Build the same image of target/release/quipu, without a base image
	kubernetes/image/build --binary $(BIN)

bench: build bench-policies ## Measure side by side; results in bench/results/
	$(CARGO) run --release --locked -p quipu-bench

# The bench names in its results what could not be built.
bench-policies: setup guests
	@! command -v python3 >/dev/null || $(MAKE) plugin-python || echo "skipped: the example in Python is not built"
	@! command -v npm >/dev/null || $(MAKE) plugin-js || echo "skipped: the example in JavaScript is not built"

bench-cluster: build setup services ## Measure a cluster beside Cassandra's counter columns; results in bench/results/
	env=$$(tests/services/up | tail -n 1); set -a; . "$$env"; \
		$(CARGO) run --release --locked -p quipu-bench -- cluster --cassandra-process "$$(cat "$${env%/env}/cassandra/node1/pid")"

lint: plugins ## Formatting and clippy, warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	$(MAKE) -C plugins lint
	$(MAKE) -C tests/guests lint
	$(CARGO) fmt --check --manifest-path tests/model/Cargo.toml
	$(CARGO) clippy --release --locked --all-targets --manifest-path tests/model/Cargo.toml -- -D warnings
	@! command -v shellcheck >/dev/null || shellcheck -x .ci/* tests/services/up tests/services/down tests/services/cluster tests/services/*.sh kubernetes/image/* $(KUBERNETES_SCRIPTS)

ci: ## What CI runs
	.ci/run

clean: ## Remove everything that was built
	$(CARGO) clean
	$(CARGO) clean --manifest-path plugins/Cargo.toml
	$(CARGO) clean --manifest-path tests/guests/Cargo.toml
	$(CARGO) clean --manifest-path tests/model/Cargo.toml
