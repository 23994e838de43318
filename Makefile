# make demo       trains Jet on handwritten digits, evaluates and samples it; under 5 minutes on 2 cores, all included
# make test       passes the tests
# make test-slow  passes the tests that take minutes
# make test-faults  kills, corrupts and starves runs, and prints the table of docs/reference/reliability.md; SOAK=30 for a longer soak
# make lint       style and types
# Each makes the environment in .venv first if it is missing. PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
BIN := .venv/bin
LIBTPU := $(CURDIR)/.venv/libtpu/libtpu/libtpu.so
DEMO ?= runs/digits
SOAK ?= 10

.PHONY: demo test test-slow test-faults lint clean

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

test: .venv/installed .venv/libtpu
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(WITH_LIBTPU) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: .venv/installed .venv/libtpu
	$(WITH_LIBTPU) $(BIN)/python -m pytest -m "slow and not fault"

test-faults: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m fault --soak_minutes=$(SOAK)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf .venv .cache runs
