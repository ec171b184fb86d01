# Everything starts from nothing: `make serve` and `make test` set themselves up.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
BIN := .venv/bin

.PHONY: setup serve browser test test-all audit check bench bench-peers soak docs site

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/sparserm models pull smollm2-135m-instruct
	touch $@

serve: setup
	$(BIN)/sparserm serve --host $(HOST) --port $(PORT)

# The page is tested in Debian's Chromium; without one, those tests are skipped.
browser:
	command -v chromium >/dev/null || (apt-get update -q && apt-get install -qy --no-install-recommends chromium)

test: setup
	$(BIN)/python -m pytest -m "not heavy"

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
	$(BIN)/python -m benchmarks.bulk

bench-peers: setup
	$(BIN)/python -m benchmarks.peers.install
	$(BIN)/python -m benchmarks.peers --docs docs

soak: setup
	$(BIN)/python -m tests.faults.overload
	$(BIN)/python -m tests.faults.soak

docs: setup
	$(BIN)/python -m app.serve.api.openapi docs/openapi.json
	$(BIN)/python -m tests.repository.test_docs

# The pages of docs/ as a site that asks nothing of other hosts; open build/site/index.html, or serve the folder.
site: setup
	$(BIN)/mkdocs build --strict
