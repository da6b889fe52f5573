# tenure: `make help` lists the targets.

# go-nvml's headers warn about functions that NVIDIA has deprecated.
export CGO_CFLAGS ?= -O2 -Wno-deprecated-declarations

GO        ?= go
GOLANGCI  := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
FUZZTIME  ?= 60s
MINUTES   ?= 30
PACKAGE   ?= ./...

.DEFAULT_GOAL := help
.PHONY: help run demo build test check race nocgo tidy e2e chaos clients image-check lint fmt fuzz bench bench-proxy bench-residency soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: build ## build and serve: before the Ollama at OLLAMA_HOST, or a simulated one when none answers
	./bin/tenure serve --simulate=auto

demo: build ## build and serve before a simulated Ollama, whatever runs here
	./bin/tenure serve --simulate

build: ## build bin/tenure
	$(GO) build -o bin/tenure ./cmd/tenure

test: ## all tests that need no GPU, no Ollama and no Docker
	$(GO) test ./...

check: lint race nocgo tidy ## what a change must pass: lint, the tests under the race detector, a build without cgo, a tidy go.mod

race: ## all tests under the race detector
	$(GO) test -race ./...

nocgo:
	CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/tenure

tidy:
	$(GO) mod tidy -diff
	$(GO) mod verify

e2e: build ## the end-to-end tests, clients' suites among them, on a real Ollama (which the first run builds: some 10 minutes)
	.ci/ollama
	.ci/clients
	$(GO) test -tags e2e,clients -count=1 -timeout 30m -v -run '^TestE2E' ./cmd/tenure/... ./proxy ./proxy/ollama/...

chaos: build ## break Ollama and tenure under the load of 32 clients, on a simulated and on a real Ollama, and count what becomes of them
	.ci/ollama
	$(GO) test -tags e2e -count=1 -timeout 20m -v -run '^TestChaos$$' ./cmd/tenure

clients: build ## the suites of real clients (Python, Node, Go), on a simulated Ollama; the first run installs them
	.ci/clients
	$(GO) test -tags clients -count=1 -timeout 20m -v -run '^TestClients' ./cmd/tenure

image-check: ## build the image's stages without Docker and try them in a Debian root, as root; the first run makes that
	.ci/image
	.ci/ollama
	$(GO) test -tags image -count=1 -timeout 5m -v -run '^TestImage' ./cmd/tenure/deploy

lint: ## golangci-lint, and the formatters' opinion
	$(GO) run $(GOLANGCI) run ./...

fmt: ## format the code
	$(GO) run $(GOLANGCI) fmt ./...

fuzz: ## fuzz every decoder of foreign bytes, FUZZTIME each
	@$(GO) list -f '{{$$d := .}}{{range .TestGoFiles}}{{$$d.Dir}}/{{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$$d.Dir}}/{{.}}{{"\n"}}{{end}}' $(PACKAGE) \
	| xargs grep -H '^func Fuzz' | sed -E 's|^(.*)/[^/]*:func (Fuzz[A-Za-z0-9_]*).*|\1 \2|' | sort -u \
	| while read -r dir name; do echo "== $$dir $$name"; (cd $$dir && $(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) .) || exit 1; done

bench: ## the Go benchmarks, with allocations
	$(GO) test -run '^$$' -bench . -benchmem $(PACKAGE)

bench-proxy: build ## what the hop costs, beside nginx (when installed) and a plain ReverseProxy; BENCH=-n=300 for a short run, BENCH=-soak for memory
	$(GO) run ./proxy/bench -tenure bin/tenure $(BENCH)

bench-residency: build ## plain Ollama against tenure, head to head on a real Ollama; BENCH="-only S1r,S2" or BENCH=-short for less
	.ci/ollama
	$(GO) run ./proxy/bench/real -tenure bin/tenure $(BENCH)

soak: build ## mixed traffic, cancels and restarts of a real Ollama for MINUTES=30; fails if anything is lost, leaked or evicted
	.ci/ollama
	$(GO) run ./proxy/bench/real -tenure bin/tenure -soak $(MINUTES)m $(BENCH)

clean: ## remove what was built, the test models and the test server
	rm -rf bin .cache
