# Everything runs in .venv, made on first use. Stamp files there say what is up to date, so that a repeated command is quick.

PYTHON ?= python3
PROVE_CASES ?= 20000

VENV := .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)/.tools
BUILT := $(VENV)/.built
PEERS := $(VENV)/.peers
RUST := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)

export PYO3_PYTHON := $(abspath $(BIN)/python)
export VIRTUAL_ENV := $(abspath $(VENV))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_QUIET := 1
unexport CONDA_PREFIX

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test build lint format bench balancing conformance coverage instructions prove clean rust-test python-test

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## Collect from three strict local servers for half a minute
	$(BIN)/tidegate demo

test: lint rust-test python-test ## Check everything: linters, the core's tests, the package's tests

build: $(BUILT) ## Build the release library into .venv

lint: build ## Formatting, clippy, ruff, mypy, and the stub against the compiled module
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest tidegate._core --allowlist tests/typing/stubtest-allowlist.txt

format: $(TOOLS) ## Format Rust and Python
	cargo fmt --all
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .

bench: build ## Measure against peers in the same run; prints a table with goals
	$(BIN)/python bench

conformance: build $(PEERS) ## Try every kind of limit against every kind of server, in virtual time, and peers too; kept in docs
	cargo run --quiet --release --package tidegate-core --locked --example conformance > docs/conformance.md
	@grep -E 'cells|Rejections in all' docs/conformance.md
	$(BIN)/python -m conformance > docs/conformance-peers.md
	@sed -n '/^## By kind/,/^## By limit/p' docs/conformance-peers.md | grep '^|'

balancing: ## Choose among unequal backends in many ways, in virtual time, beside the optimum; kept in docs
	cargo run --quiet --release --package tidegate-core --locked --example balancing > docs/balancing.md
	@sed -n '/^## Goals/,$$p' docs/balancing.md

instructions: build ## Count instructions a request, with valgrind
	PYTHON=$(BIN)/python bench/instructions.sh

coverage: ## Line coverage of the core by its own tests; fails below 90 % (needs llvm-cov of rustc's LLVM)
	.ci/coverage

prove: build ## The long search: many random cases, every interleaving of threads, and the tests marked slow
	CARGO_PROFILE_TEST_OPT_LEVEL=2 PROPTEST_CASES=$(PROVE_CASES) \
		cargo test --package tidegate-core --locked --target-dir target/prove
	RUSTFLAGS="--cfg loom" cargo test --release --package tidegate-core --locked --target-dir target/loom --test loom
	$(BIN)/python -m pytest -m "slow or not slow" --hypothesis-profile=prove

clean: ## Remove .venv and everything that was built
	rm -rf $(VENV) target dist build .hypothesis .mypy_cache .pytest_cache .ruff_cache .benchmarks
	rm -f python/tidegate/_core*.so python/tidegate/_core*.pyd
	find . -name __pycache__ -prune -exec rm -rf {} +

rust-test:
	cargo test --package tidegate-core --locked

python-test: build
	$(BIN)/python -m pytest

# The wheel of urllib3-future, which niquests needs, would replace the urllib3 of requests.
$(TOOLS): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Tidegate needs Python 3.11 or later: make PYTHON=python3.12 ...' >&2; exit 1; }
	@command -v cargo >/dev/null || { echo 'Tidegate needs a Rust toolchain: cargo is not on PATH' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
		{ echo 'no virtual environment could be made (Debian: apt-get install python3-venv)' >&2; exit 1; }
	$(BIN)/python -m pip install 'pip>=25.1'
	URLLIB3_NO_OVERRIDE=1 $(BIN)/python -m pip install --no-binary urllib3-future --group dev
	@touch $@

$(PEERS): $(TOOLS)
	$(BIN)/python -m pip install --group conformance
	@touch $@

$(BUILT): $(TOOLS) $(RUST)
	$(BIN)/maturin develop --release --locked
	@touch $@
