# logmirror: `make run` starts a three-region cluster on this machine, `make test` proves that it works.

GO ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS := -s -w -X github.com/logmirror/logmirror/internal/version.version=$(VERSION) \
	-X github.com/logmirror/logmirror/internal/version.commit=$(COMMIT)
BIN := bin/
BUF := $(GO) tool -modfile=tools/buf/go.mod buf
# Packages whose concurrency the race detector looks at in `make test`: all but those that run whole clusters, whose parts
# are looked at by themselves (`make race` takes them too), those that build processes of their own, and the simulation,
# which is single-threaded.
OWN_PROCESSES = -e /test/e2e -e /test/chaos -e /api/proto -e /logservice/mutation -e /test/mutation -e /test/sim -e /docs/tutorials
RACE_PACKAGES = $(shell $(GO) list ./... | grep -v $(OWN_PROCESSES) -e /test/cluster)
# Packages in which long or single-threaded tests do less under the race detector (raceEnabled, in their norace_test.go): they
# run once more without it, in full. The log service is one of them, and runs with all its schedules.
SAMPLED_PACKAGES = $(shell grep -rl --include=norace_test.go 'const raceEnabled' . | xargs -n 1 dirname | grep -v '^./logservice$$' | sort)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z%-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: build ## Start a cluster of three regions on this machine (RUN_FLAGS adds flags of kvctl playground)
	bin/kvctl playground $(RUN_FLAGS)

.PHONY: build
build: ## Build logsvc, frontend, wanlink and kvctl into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/...

.PHONY: release
release: ## Build static binaries for linux and darwin, amd64 and arm64, with checksums and a bill of materials, into dist/
	GO="$(GO)" VERSION="$(VERSION)" tools/release.sh dist

.PHONY: release-check
release-check: ## Build a release twice, in two places, and compare every byte (one platform; PLATFORMS for others)
	PLATFORMS="$${PLATFORMS:-linux/amd64}" GO="$(GO)" VERSION="$(VERSION)" tools/release-check.sh

# `go vet` makes all of its checks, of tests too: `go test` need not repeat some of them for each way of building.
.PHONY: test
test: ## Run everything that must hold, with the race detector where it pays
	$(GO) vet ./...
	$(GO) test -vet=off -race -timeout 9m $(RACE_PACKAGES)
	$(GO) test -vet=off -timeout 9m ./test/cluster ./test/e2e/... ./test/chaos ./logservice/mutation ./test/mutation ./test/sim \
		./docs/tutorials/programs $(SAMPLED_PACKAGES)
	$(GO) test -vet=off -timeout 9m ./logservice -simulate.seeds 2000

.PHONY: race
race: ## Run the tests of whole clusters with the race detector as well (about a quarter of an hour)
	$(GO) test -race -timeout 0 $(shell $(GO) list ./... | grep -v $(OWN_PROCESSES))

FUZZ_SECONDS ?= 60

.PHONY: fuzz
fuzz: ## Run every fuzz target of the repository for FUZZ_SECONDS (60) each; what one finds is kept in its testdata
	@grep -rEo '^func Fuzz[A-Za-z0-9_]*' --include='*_test.go' . | sed -E 's|^(.*)/[^/]*:func (.*)|\1 \2|' | sort | \
	while read -r directory target; do \
		echo "$$directory $$target"; \
		$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZ_SECONDS)s $$directory || exit 1; \
	done

.PHONY: simulate
simulate: ## Run SEEDS seeded schedules of the log service from seed FROM on, on all processors
	$(GO) test -count 1 -timeout 0 -v -run '^TestSimulation$$' ./logservice -simulate.seeds $(SEEDS) -simulate.from $(FROM)

SEEDS ?= 100000
FROM ?= 0

.PHONY: torture
torture: ## Run whole systems from new seeds for MINUTES, on all processors, and go on with the figures in RECORD
	$(GO) test -count 1 -timeout 0 -v -run '^TestTorture$$' ./test/sim -sim.minutes $(MINUTES) -sim.record $(abspath $(RECORD))

MINUTES ?= 10
RECORD ?= torture.json

.PHONY: model
model: ## Let spin search the model of publication and read rounds (LIMIT seconds for each search; needs spin and gcc)
	logservice/spec/run.sh

.PHONY: mutants
mutants: ## Plant mistakes in the log service and in the whole system, one at a time, and write down what finds each (ONLY=pattern)
	$(if $(ONLY),,$(GO) test -count 1 -timeout 0 -v ./logservice/mutation -mutation.table $(CURDIR)/logservice/MUTANTS.md)
	$(GO) test -count 1 -timeout 0 -v ./test/mutation -mutation.table $(CURDIR)/docs/mutants.md -mutation.only '$(ONLY)'

.PHONY: lease-scale
lease-scale: ## Renew 100,000 leases in virtual time and count entries and bytes between regions (about a minute)
	$(GO) test -v -run TestRenewalsCostTheLogNothing ./test/cluster -leases 100000

.PHONY: soak
soak: ## Kill, pause, cut off and replace real processes under load and trimming for SOAK_MINUTES, as SOAK_SEED draws it
	$(GO) test -count 1 -timeout 0 -v -run '^TestSoak$$' ./test/e2e -soak.duration $(SOAK_MINUTES)m -soak.seed $(SOAK_SEED)

SOAK_MINUTES ?= 3
SOAK_SEED ?= 1

.PHONY: chaos
chaos: ## Do every kind of harm to real processes for CHAOS_MINUTES, as CHAOS_SEED draws it, and check all that clients saw
	$(GO) test -count 1 -timeout 0 -v ./test/chaos -chaos.duration $(CHAOS_MINUTES)m -chaos.seed $(CHAOS_SEED)

CHAOS_MINUTES ?= 5
CHAOS_SEED ?= 1

.PHONY: drills
drills: ## Lose members, leaders, regions, disks and clocks of real processes, and measure what clients notice (about 15 minutes)
	$(GO) run ./test/drills $(DRILL_FLAGS) all

drill-%: ## One of them, such as drill-lost-region (see go run ./test/drills -help)
	$(GO) run ./test/drills $(DRILL_FLAGS) $*

.PHONY: lint
lint: ## Run go vet, staticcheck and golangci-lint
	$(GO) vet ./...
	$(GO) tool -modfile=tools/lint/go.mod staticcheck ./...
	$(GO) tool -modfile=tools/lint/go.mod golangci-lint run --allow-parallel-runners ./...

.PHONY: observability
observability: ## Evaluate each alert against series; hold alerts, dashboard and runbook to docs/metrics.md
	cd test/observability && $(GO) vet ./... && $(GO) test -count 1 ./...

.PHONY: proto
proto: ## Generate the Go code of api/proto anew
	$(BUF) generate

.PHONY: proto-check
proto-check: ## Check the protocols: lint, no breaking change, generated code current
	$(BUF) lint
	tools/proto-check.sh

# Rows and rounds of `make bench`, chosen so that it ends in under 15 minutes; bench-quick is in under two.
BENCH_QUICK_ROWS := put,put-100,put-1,cas,get,get-serializable,range,lease-keepalive,watch
BENCH_PACKAGES := ./logservice/... ./statemachine/... ./watch/... ./lease/... ./mirror/... ./idgen/... ./frontend/...

.PHONY: bench
bench: ## Measure this checkout beside etcd: every row, three rounds, WAN rows, 1,000,000 keys (BENCH_FLAGS adds flags of test/bench)
	cd test/bench && $(GO) run . -duration 3s $(BENCH_FLAGS)

.PHONY: bench-quick
bench-quick: ## The same with one short round of the main rows, in under two minutes
	cd test/bench && $(GO) run . -rounds 1 -duration 2s -keys 10000 -rows $(BENCH_QUICK_ROWS) $(BENCH_FLAGS)

.PHONY: bench-watch
bench-watch: ## Measure watches beside etcd: CPU per event, latency to the last of 10,000 deliveries, memory (about 6 minutes)
	cd test/bench && $(GO) run . -rows 'watch*' -keys 1000 -duration 3s $(BENCH_FLAGS)

.PHONY: bench-plot
bench-plot: ## Draw latency against load, 1 to 1,000 clients, beside etcd's, into docs/plots (about two minutes)
	cd test/bench && $(GO) run . -rows put-1 -rounds 1 -duration 2s -keys 10000 -plot $(CURDIR)/docs/plots $(BENCH_FLAGS)

.PHONY: bench-scale
bench-scale: ## Measure scaling curves, all or CURVES=clients,keys,…, into SCALE_INTO (docs/plots; about 20 minutes, 5 GB of memory)
	cd test/bench && $(GO) run . -scale $(CURVES) -scale-into $(abspath $(SCALE_INTO)) -duration 4s $(BENCH_FLAGS)

.PHONY: bench-scale-quick
bench-scale-quick: ## The same over a hundredth of the range, into a temporary directory, to see that it works
	cd test/bench && $(GO) run . -scale $(CURVES) -scale-small -scale-into $$(mktemp -d) -duration 1s $(BENCH_FLAGS)

CURVES ?= all
SCALE_INTO ?= docs/plots

# The log is trimmed by one file at a time, as by default, only in less time: a tail of 32 MiB in files of 4 MiB is full after
# the first two rows.
.PHONY: bench-log-bytes
bench-log-bytes: ## Count what log members write for a put in the long run, checkpoints and trimming included, beside etcd (two minutes)
	cd test/bench && $(GO) run . -rows put-100,cas,put -rounds 3 -duration 5s -keys 5000 \
		-member-flags '--segment-bytes 4MiB --log-tail-bytes 32MiB --checkpoint-log-bytes 16MiB' $(BENCH_FLAGS)

.PHONY: bench-restart
bench-restart: ## Hold 1,000,000 keys, restart one server of each system, and print times, memory and their ratios
	cd test/bench && $(GO) run . -rows large -keys 1000 $(BENCH_FLAGS)

.PHONY: bench-bootstrap
bench-bootstrap: ## Let a frontend without data join 1,000,000 keys, and print what that costs the others
	cd test/bench && $(GO) run . -rows bootstrap -keys 1000 $(BENCH_FLAGS)

.PHONY: bench-gc
bench-gc: ## Measure what a collection costs with 5,000,000 keys in memory
	$(GO) test -run '^$$' -bench 'Memory/keyspace$$' -benchtime 1x ./statemachine/keyspace -bench-keys 5000000

.PHONY: bench-ids
bench-ids: ## Measure ids of each kind: in the generator, and from a frontend over loopback
	GOMAXPROCS=1 $(GO) test -run '^$$' -bench . ./idgen
	$(GO) test -run '^$$' -bench IDs ./client

.PHONY: bench-go
bench-go: ## Run the Go benchmarks of the hot paths with their allocation counts
	$(GO) test -run '^$$' -bench . -benchmem $(BENCH_PACKAGES)

.PHONY: bench-compare
bench-compare: ## Compare the Go benchmarks with those of another commit: BASE=main BENCH=pattern COUNT=6
	GO="$(GO)" BASE="$(BASE)" BENCH="$(BENCH)" COUNT="$(COUNT)" tools/bench-compare.sh $(BENCH_PACKAGES)

.PHONY: test-etcd
test-etcd: ## Compare what watches say with what etcd's say, event by event (builds etcd; about 2 minutes)
	cd test/bench && $(GO) test -count=1 ./...

.PHONY: metrics-reference
metrics-reference: ## Write docs/metrics.md anew from what a running cluster exports
	$(GO) test -count 1 -run '^TestMetrics$$' ./test/cluster -metrics.update

.PHONY: demo
demo: ## Start three regions as containers (needs a Docker Engine with docker compose or docker-compose)
	deploy/compose/demo up

.PHONY: demo-tour
demo-tour: ## Walk through the running demo: write, watch, cut a region off, kill the leader, heal; each answer is checked
	$(GO) run ./test/tour

.PHONY: demo-down
demo-down: ## Stop the demo and remove its data, certificates and image
	deploy/compose/demo down

.PHONY: test-demo
test-demo: ## Start the demo, walk through it and end it, as a test (some minutes of containers)
	$(GO) test -count 1 -timeout 15m -v ./test/tour -tour

.PHONY: clean
clean: ## Remove what build made
	rm -rf bin dist
