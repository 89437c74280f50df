# Fairway: the commands of everyday work. `make demo` and `make test` need nothing but git, make, curl and
# Rust beforehand; missing Debian packages are installed by scripts/install-deps.

CARGO ?= cargo
export CARGO
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
export FAIRWAY_REPORT_DIR ?= $(CURDIR)/target/reports
PROGRAMS := -p fairway-cli -p fairway-control -p fairway-dataplane -p fairway-tests

.PHONY: help build demo demo-down test test-guest test-kills test-survival matrix
.PHONY: model sanitize lint bench-engine bench-instructions bench-pktgen bench-churn
.PHONY: bench-lpm bench-idle bench-handoff bench-paths bench-stages bench-services kube clean deps

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

deps: # Installs what is missing, and only then needs root
	@scripts/install-deps
	@command -v $(CARGO) > /dev/null || { echo "cargo is missing: install Rust with rustup" >&2; exit 1; }

build: deps ## Build all programs in release mode
	$(CARGO) build --release $(PROGRAMS) --bins

demo: build ## Show the main job on two nodes (root; KEEP=1 leaves it running)
	@$(TARGET_DIR)/release/fairway demo $(if $(filter 1 yes true,$(KEEP)),--keep)

demo-down: ## Take down a demo that was left running
	@$(TARGET_DIR)/release/fairway demo --down

test: deps ## Run everything: static checks, unit, property and end-to-end tests (root)
	@scripts/run-tests

model: deps ## Check what threads and processes share in every interleaving (loom; the long version)
	LOOM_MAX_PREEMPTIONS=$(or $(LOOM_MAX_PREEMPTIONS),4) RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=$(TARGET_DIR)/loom \
	    $(CARGO) test --release --lib -p fairway-tables -p fairway-pmd -p fairway-dataplane

sanitize: deps ## Run what has unsafe code under AddressSanitizer and valgrind
	@scripts/sanitize

test-kills: build ## Kill control 1,000 times under readers and the engine 30 times under load (root)
	FAIRWAY_KILLS=$(or $(FAIRWAY_KILLS),1000) FAIRWAY_ENGINE_KILLS=$(or $(FAIRWAY_ENGINE_KILLS),30) \
	    $(CARGO) test -p fairway-tests --test kills --test kills_engine -- --nocapture

test-guest: build ## Exchange traffic with Linux's ipip, sit and ip6tnl as the other node, in QEMU (root; part of make test)
	$(CARGO) test -p fairway-tests --test guest -- --nocapture

test-survival: build ## Kill and restart a node's parts under 200 connections and a probe (root)
	$(CARGO) test -p fairway-tests --test survival -- --nocapture

matrix: build ## Walk every path of a packet in every mode and print a table of ticks (root)
	@$(TARGET_DIR)/release/fairway-test matrix

lint: deps ## Run the static checks alone
	@scripts/lint

bench-engine: deps ## Measure time and allocations per packet of the engine, without packet I/O
	$(CARGO) run --release -p fairway-bench --bin bench-engine

bench-instructions: deps ## Count the engine's instructions per packet and compare them with those committed (part of make test)
	$(CARGO) build --release -p fairway-bench --bin bench-engine
	CARGO_TARGET_DIR=$(TARGET_DIR) scripts/check-instructions

# Bounded for a small machine: short trials, three sizes. docs/pktgen.md says how to measure thoroughly.
PKTGEN = $(TARGET_DIR)/release/fairway-pktgen
PKTGEN_METHOD = --trial-ms 100 --report bench-pktgen
PATHS6 = same-node,vxlan,direct,clusterip,service-vxlan,nodeport,masquerade
PATHS = $(PATHS6),ipip
bench-pktgen: build ## Measure rate, latency and cost with fairway-pktgen, beside peers (root)
	@scripts/install-deps --peers
	$(CARGO) build --release -p fairway-bench --bin fairway-pktgen
	rm -f $(FAIRWAY_REPORT_DIR)/bench-pktgen.json
	$(PKTGEN) cost --report bench-pktgen
	$(PKTGEN) rfc2544 bench/scenarios/same-node.yaml --sizes 64,512,1468 $(PKTGEN_METHOD)
	$(PKTGEN) rfc2544 bench/scenarios/same-node.yaml bench/scenarios/vxlan.yaml bench/scenarios/clusterip.yaml \
		--device fairway --sizes 64,512,1468 --short --repeats 2 $(PKTGEN_METHOD)
	$(PKTGEN) peers --paths same-node,clusterip,service-vxlan --services 1000 $(PKTGEN_METHOD)
	$(PKTGEN) report $(FAIRWAY_REPORT_DIR)/bench-pktgen.json --html $(FAIRWAY_REPORT_DIR)/bench-pktgen.html \
		--note "$$(uname -srm), $$(nproc) CPUs, $$(date -u +%FT%RZ); one engine worker on the last core, generator and sink on the first"
	$(PKTGEN) targets $(FAIRWAY_REPORT_DIR)/bench-pktgen.json

bench-idle: build ## Measure what adaptive polling takes when idle and adds to a first packet, at 2, 10 and 250 pods (root)
	$(CARGO) build --release -p fairway-bench --bin fairway-pktgen
	$(PKTGEN) idle --report bench-idle

bench-paths: build ## Measure every path in both families through Fairway and the kernel, and what changing tables cost (root)
	$(CARGO) build --release -p fairway-bench --bin fairway-pktgen
	$(PKTGEN) peers --devices fairway,kernel --paths $(PATHS) --rounds 1 --trial-ms 100 --report bench-paths
	$(PKTGEN) peers --devices fairway,kernel --paths $(PATHS6) --family ipv6 --size-bytes 84 --rounds 1 \
		--trial-ms 100 --report bench-paths
	for device in memory fairway; do \
		$(PKTGEN) churn bench/scenarios/churn.yaml --device $$device --rounds 3 --report bench-paths || exit 1; \
	done

bench-stages: deps ## Measure each step of a packet's way by itself, with criterion
	$(CARGO) bench -p fairway-bench --bench stages

bench-handoff: deps ## Measure what it costs that a packet leaves by another worker's port
	$(CARGO) build --release -p fairway-bench --bin fairway-pktgen
	$(PKTGEN) handoff --report bench-handoff

kube: deps ## Build kube-proxy and kube-apiserver once, for the comparison with them (Go, minutes)
	@scripts/kube-programs

bench-services: build kube ## Compare with kube-proxy's nftables mode at 10, 1,000 and 10,000 Services (root, Go)
	$(CARGO) build --release -p fairway-bench --bin fairway-pktgen
	for services in 10 1000 10000; do \
		$(PKTGEN) peers --devices fairway,kube-proxy --paths clusterip --services $$services --sessions 256 \
			--rounds 3 --trial-ms 300 --report bench-services || exit 1; \
	done

bench-churn: build ## Measure the cost of change at 100, 1,000 and 5,000 nodes (root for the part with manifests)
	$(CARGO) build --release -p fairway-bench --bin bench-churn
	FAIRWAY_BIN_DIR=$(abspath $(TARGET_DIR))/release $(TARGET_DIR)/release/bench-churn

bench-lpm: deps ## Check a million route changes, then time look-ups and changes from one route to a million
	$(CARGO) run --release -p fairway-bench --bin bench-lpm -- --check
	$(CARGO) run --release -p fairway-bench --bin bench-lpm

clean: ## Delete everything built
	$(CARGO) clean
	rm -rf target/reports target/test-summary
