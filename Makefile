# make help lists what there is. Everything a target makes lies in bin/,
# build/out/ and .cache/, none of which git keeps.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help build assets quick test sim-mesh bench demo dev lint generate setup clean sim-arm64
MAKEFLAGS += --no-print-directory

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TESTSUM := .cache/bin/testsum

# Packages that need neither root nor minutes of compiling.
# simulations/virtual links libp2p.
QUICK := ./cli ./cli/client ./cli/interrupt ./cli/output ./cli/python ./cli/sim ./simulations \
	$(patsubst %,./%/...,$(wildcard internal proto scheduler tools) \
	$(filter-out simulations/virtual,$(patsubst %/,%,$(wildcard simulations/*/))))

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 14

build: assets ## build bin/beam with all its helpers inside
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags assets -ldflags '-s -w -X main.version=$(VERSION)' -o bin/beam ./cli/beam

assets: ## build the helpers that bin/beam embeds
	go run ./build/assets

$(TESTSUM): FORCE
	@go build -o $@ ./tools/testsum
FORCE:

setup: ## install what tests and build need (OS packages as root; rest in .cache/)
	@tools/setup.sh

quick: $(TESTSUM) ## pure packages and the command line's goldens: no root, under 3 minutes
	@$(TESTSUM) -race=false -groups go $(QUICK)

test: setup build $(TESTSUM) ## every test, with real containers: needs root or sudo
	@$(TESTSUM)

# GOMEMLIMIT trades processor time for memory near the end of the largest mesh.
NODES ?= 1000
sim-arm64: ## the sums of small simulations, on arm64 under qemu-user
	@command -v qemu-aarch64-static >/dev/null || { echo 'error: no qemu-aarch64-static' >&2; echo 'hint: apt-get install qemu-user-static' >&2; exit 1; }
	GOARCH=arm64 CGO_ENABLED=0 go test -c -o .cache/sim-arm64.test ./cli/sim
	cd cli/sim && qemu-aarch64-static ../../.cache/sim-arm64.test -test.run TestBytes -test.v

sim-mesh: ## a mesh of NODES=1000 real libp2p hosts in virtual time: prints what it costs
	@BEAM_SIM_MESH=$(NODES) GOMEMLIMIT=2800MiB go test -count 1 -timeout 60m -run '^TestMesh$$' -v ./simulations/virtual

lint: setup $(TESTSUM) ## format, go vet, staticcheck
	@$(TESTSUM) -groups lint

bench: build ## measure against other systems on this machine
	@tools/bench.sh

demo: ## install, build, start a mesh of three nodes here and run a function on it
	@tools/demo.sh

dev: build ## start a mesh of three nodes on this machine, as root
	@sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo env BEAM_BASE_CACHE="$(CURDIR)/.cache/base" bin/beam dev up --nodes 3

generate: ## write the code of all schemas again (needs protoc)
	go run ./tools/codegen

clean: ## remove everything that was built; a running mesh: bin/beam dev down
	rm -rf bin build/out .cache
