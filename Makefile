# `make serve` and `make test` set themselves up; they need Python 3.11 or newer, pip and git.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
JOBS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: setup-serve setup serve browser test test-all audit check bench bench-peers soak docs site

# What serving needs, and the default backbone.
setup-serve: .venv/serve-ready

# What development needs beside that.
setup: .venv/ready

.venv/serve-ready: pyproject.toml client/pyproject.toml constraints.txt
	@echo "Setting up the server in .venv: about 1.2 GB on disk with a CPU build of torch, about two minutes on a fast connection."
	@echo "[1/4] creating the virtual environment"
	$(PYTHON) -m venv .venv
	@echo "[2/4] installing torch"
	$(PIP) torch
	@echo "[3/4] installing sparserm and what it needs to serve"
	$(PIP) -e client -e .
	@echo "[4/4] fetching and converting the default backbone (93 MB)"
	$(BIN)/sparserm models pull smollm2-135m-instruct
	touch $@

.venv/ready: .venv/serve-ready
	@echo "Adding what development needs: training, alignment, Ray, linters, test tools (another 1.6 GB)."
	$(PIP) -e client -e '.[dev]'
	touch $@

serve: setup-serve
	$(BIN)/sparserm serve --host $(HOST) --port $(PORT)

# The page is tested in Debian's Chromium; without one, those tests are skipped.
browser:
	command -v chromium >/dev/null || (apt-get update -q && apt-get install -qy --no-install-recommends chromium)

test: setup
	$(BIN)/python -m pytest -m "not heavy" -n $(JOBS) --dist loadfile

test-all: setup check
	$(BIN)/python -m pytest

audit: setup
	$(BIN)/pip-audit -r constraints.txt --no-deps --disable-pip --progress-spinner off

check: setup audit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.peers --fresh --results build/bench.jsonl --peers ours ours-reasons \
		--workloads unique-1 unique-16 groups-8-75 storm batch
	$(BIN)/python -m benchmarks.offline_scoring

bench-peers: setup
	$(BIN)/python -m benchmarks.peers.install
	$(BIN)/python -m benchmarks.peers --docs docs

soak: setup
	$(BIN)/python -m tests.faults.overload
	$(BIN)/python -m tests.faults.soak

# Rewrites the pages that are generated from the code.
docs: setup
	$(BIN)/python -m app.serve.api.openapi docs/openapi.json
	$(BIN)/python -m tests.repository.test_docs

# The pages of docs/ as a site that loads nothing from other hosts; open build/site/index.html, or serve the folder.
site: setup
	$(BIN)/mkdocs build --strict
