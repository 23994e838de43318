# make demo       trains Jet on handwritten digits, evaluates and samples it; under 5 minutes on 2 cores, all included
# make check      style, types and the tests that start no process; 7 minutes on 2 cores from the second time on
# make test       passes the tests, those that start processes included; about half an hour on 2 cores on a clean clone
# make test-all   passes all of them, those that take minutes and `make test-faults` included
# make test-faults  kills, corrupts and starves runs, and prints the table of docs/reference/reliability.md; SOAK=30 for a longer soak
# make gpu-check  measures parity, speed, learning and determinism on a GPU in 8 minutes, into GPU_CHECK=runs/gpu_check
# make test-oldest, make test-newest  passes the tests of `make test` on the oldest and newest versions that pyproject.toml
#                 allows, in .venv-oldest and .venv-newest; the newest JAX needs PYTHON=python3.12 or later
# make lint       style and types
# make docs-tables  writes the tables of figures from docs/results/
# make requirements  takes the newest versions that pyproject.toml allows to requirements.txt, which the others install
# Each makes the environment in .venv first if it is missing. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LIBTPU := $(CURDIR)/$(VENV)/libtpu/libtpu/libtpu.so
DEMO ?= runs/digits
SOAK ?= 10
BUDGET ?= 8
GPU_CHECK ?= runs/gpu_check

.PHONY: demo check test test-all test-faults test-oldest test-newest tests gpu-check lint docs-tables requirements clean

# RESOLUTION=lowest-direct or highest installs the oldest or newest versions in place of those of requirements.txt.
$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jet_jax needs Python 3.11 or newer, not " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
ifdef RESOLUTION
	$(PIP) uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --resolution $(RESOLUTION) -e .
	$(PIP) -e '.[dev]'
else
	$(PIP) -c requirements.txt -e '.[dev]'
endif
	@touch $@

demo: $(VENV)/installed
	$(BIN)/python -m jet_jax.train --config=configs/digits.py --workdir=$(DEMO)
	$(BIN)/python -m jet_jax.evaluate --workdir=$(DEMO)
	$(BIN)/python -m jet_jax.sample --workdir=$(DEMO) --temperature=0.8 --out=$(DEMO)/samples.png
	@echo "digits that the flow has drawn: $(DEMO)/samples.png"

# The TPU's compiler, for one test; apart from the environment, where JAX would look for TPUs in every run. May fail.
$(VENV)/libtpu: $(VENV)/installed
	-@$(PIP) --no-deps -c requirements.txt --target $@ libtpu

WITH_LIBTPU := if test -f $(LIBTPU); then export TPU_LIBRARY_PATH=$(LIBTPU); fi;

# `worksteal` keeps the tests of a file together as long as it can: what they share is made once a worker.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

TESTS = $(WITH_LIBTPU) $(PYTEST) -m "not slow"

# BUDGET: seconds of processor time that no test takes which finds its programs compiled (tests/support/tiers.py).
check: lint
	$(PYTEST) -m "not process and not slow" --cpu_budget=$(BUDGET)

test: $(VENV)/installed $(VENV)/libtpu
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(TESTS)

tests: $(VENV)/installed $(VENV)/libtpu
	$(TESTS)

test-oldest:
	$(MAKE) --no-print-directory tests VENV=.venv-oldest RESOLUTION=lowest-direct

test-newest:
	$(MAKE) --no-print-directory tests VENV=.venv-newest RESOLUTION=highest

test-all: $(VENV)/installed $(VENV)/libtpu
	$(WITH_LIBTPU) $(PYTEST) --soak_minutes=$(SOAK)

test-faults: $(VENV)/installed
	$(PYTEST) -m fault --soak_minutes=$(SOAK)

# Adds JAX for NVIDIA GPUs, as pip install -e '.[cuda]' does. The tool starts processes that need GPU memory beside it.
gpu-check: $(VENV)/installed
	@if command -v nvidia-smi >/dev/null; then $(PIP) -c requirements.txt 'jax[cuda13]'; fi
	XLA_PYTHON_CLIENT_PREALLOCATE=false $(BIN)/python -m tools.gpu_check --out=$(GPU_CHECK)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Writes the tables of README, configs/ and docs/ from docs/results/.
docs-tables: $(VENV)/installed
	$(BIN)/python -m tools.results

requirements: $(VENV)/installed
	$(BIN)/uv pip compile --quiet --universal --upgrade --no-annotate --extra=dev --extra=tpu --extra=cuda \
	  --custom-compile-command='make requirements' pyproject.toml --output-file requirements.txt

clean:
	rm -rf .venv .venv-oldest .venv-newest .cache runs
