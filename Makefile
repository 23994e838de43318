# make demo       trains Jet on handwritten digits, evaluates and samples it; under 5 minutes on 2 cores, all included
# make check      style, types and the tests that start no process; 3 minutes on 2 cores from the second time on
# make test       passes the tests, those that start processes included; 13 minutes on 2 cores on a clean clone
# make test-all   passes all of them, those that take minutes and `make test-faults` included
# make test-faults  kills, corrupts and starves runs, and prints the table of docs/reference/reliability.md; SOAK=30 for a longer soak
# make gpu-check  measures parity, speed, learning and determinism on a GPU in 8 minutes, into GPU_CHECK=runs/gpu_check
# make lint       style and types
# make docs-tables  writes the tables of figures from docs/results/
# Each makes the environment in .venv first if it is missing. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
BIN := .venv/bin
LIBTPU := $(CURDIR)/.venv/libtpu/libtpu/libtpu.so
DEMO ?= runs/digits
SOAK ?= 10
BUDGET ?= 15
GPU_CHECK ?= runs/gpu_check

.PHONY: demo check test test-all test-faults gpu-check lint docs-tables clean

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jet_jax needs Python 3.11 or newer, not " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@touch $@

demo: .venv/installed
	$(BIN)/python -m jet_jax.train --config=configs/digits.py --workdir=$(DEMO)
	$(BIN)/python -m jet_jax.evaluate --workdir=$(DEMO)
	$(BIN)/python -m jet_jax.sample --workdir=$(DEMO) --temperature=0.8 --out=$(DEMO)/samples.png
	@echo "digits that the flow has drawn: $(DEMO)/samples.png"

# The TPU's compiler, for one test; apart from the environment, where JAX would look for TPUs in every run. May fail.
.venv/libtpu: .venv/installed
	-@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ libtpu==0.0.42.1

WITH_LIBTPU := if test -f $(LIBTPU); then export TPU_LIBRARY_PATH=$(LIBTPU); fi;

# `worksteal` keeps the tests of a file together as long as it can: what they share is made once a worker.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

# BUDGET: seconds of processor time that no test takes which finds its programs compiled (tests/support/tiers.py).
check: lint
	$(PYTEST) -m "not process and not slow" --cpu_budget=$(BUDGET)

test: .venv/installed .venv/libtpu
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(WITH_LIBTPU) $(PYTEST) -m "not slow"

test-all: .venv/installed .venv/libtpu
	$(WITH_LIBTPU) $(PYTEST) --soak_minutes=$(SOAK)

test-faults: .venv/installed
	$(PYTEST) -m fault --soak_minutes=$(SOAK)

# Adds JAX for NVIDIA GPUs, as pip install -e '.[cuda]' does. The tool starts processes that need GPU memory beside it.
gpu-check: .venv/installed
	@if command -v nvidia-smi >/dev/null; then $(BIN)/python -m pip install --quiet --disable-pip-version-check 'jax[cuda13]'; fi
	XLA_PYTHON_CLIENT_PREALLOCATE=false $(BIN)/python -m tools.gpu_check --out=$(GPU_CHECK)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Writes the tables of README, configs/ and docs/ from docs/results/.
docs-tables: .venv/installed
	$(BIN)/python -m tools.results

clean:
	rm -rf .venv .cache runs
