# Everything that is installed goes to .venv; `make clean` removes it. A second run installs nothing.
PYTHON ?= python3
DOCKER ?= docker
VERSION := $(shell sed -n 's/^appVersion: //p' charts/penstock/Chart.yaml)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --no-compile --constraint constraints.txt
PINS := pyproject.toml constraints.txt install_torch.py

.PHONY: help demo dev test test-cluster check images bench clean

help:
	@echo "make demo    install, start a router, a prefill and a decode worker, ask questions, stop"
	@echo "make dev     install what tests, checks and benchmarks need, too"
	@echo "make test    run all tests, fast ones first"
	@echo "make test-cluster   run the tests that need Kubernetes, on the shared cluster or on kind (about 12 minutes)"
	@echo "make check   ruff, mypy and the import rules"
	@echo "make images  build penstock/control and penstock/worker with docker, as docs/how-to/kubernetes.md says (BASE=... pins the base)"
	@echo "make bench   run the benchmarks of bench/ (needs a quiet machine; peers as docs/how-to/benchmark.md says)"
	@echo "make clean   remove .venv and everything that was built"

demo: $(VENV)/.installed
	$(BIN)/penstock demo

dev: $(VENV)/.installed-dev

test: $(VENV)/.installed-dev
	$(BIN)/python tests/run.py

test-cluster: $(VENV)/.installed-dev
	kubeconfig=$$(tests/cluster/prepare.sh) && KUBECONFIG=$$kubeconfig $(BIN)/python tests/run.py charts cluster

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

images:
	$(DOCKER) build $(if $(BASE),--build-arg BASE=$(BASE)) --tag penstock/control:$(VERSION) --file docker/control.Dockerfile .
	$(DOCKER) build $(if $(BASE),--build-arg BASE=$(BASE)) --tag penstock/worker:$(VERSION) --file docker/worker.Dockerfile .

bench: $(VENV)/.installed-dev
	$(BIN)/python -m bench.handover
	$(BIN)/python -m bench.router_overhead
	$(BIN)/python -m bench.gateways
	$(BIN)/python -m bench.placement
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.prefix_index
	$(BIN)/python -m bench.cached_tokens
	$(BIN)/python -m bench.chaos kill
	$(BIN)/python -m bench.fairness
	$(BIN)/python -m bench.start
	$(BIN)/python -m bench.cpu_vs_vllm
	$(BIN)/python -m bench.step_times
	$(BIN)/python -m bench.policies

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Penstock needs Python 3.11 or newer: set PYTHON, for example make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first, so that nothing else makes pip choose its build.
$(VENV)/.installed: $(PINS) | $(VENV)/bin/python
	$(BIN)/python install_torch.py
	@echo "router, workers and nixl"
	@$(INSTALL) --editable '.[router,worker,nixl]' 2>$(VENV)/nixl.log || { \
	    $(INSTALL) --editable '.[router,worker]' && \
	    echo "nixl-cu12 cannot be installed ($(VENV)/nixl.log): KV blocks will move over plain tcp instead of UCX"; }
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "test tools"
	@$(INSTALL) --editable '.[dev]'
	@$(INSTALL) triton || echo "triton cannot be installed: its kernels are not tested"
	@touch $@
