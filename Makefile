# make TARGET [ARGS="..."]: make demo ARGS="--seed 7" gives arguments to the demonstration, make test ARGS="-k wcs" to pytest
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
.PHONY: help install demo test test-slow test-faults lint docs bench bench-night bench-orchestration bench-window clean

help: ## This list
	@sed -n '1s/^# //p' Makefile
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  %-20s %s\n' "$$name" "$$text"; done

install: $(STAMP) ## Make the virtual environment .venv with everything that is needed; all targets below begin with it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is not Python 3.11 or newer: name one with PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
	  --constraint constraints.txt --editable ".[embedded,dev]"
	@touch $@

demo: install ## A simulated night through the whole pipeline; compares its alerts with the truth
	$(BIN)/python -m seechange_assets.cli.demo $(ARGS)

test: install ## The tests that take minutes together
	$(PYTEST) $(ARGS)

test-slow: install ## Tests with images of full size and tables of a whole survey
	$(BIN)/python -m pytest -q -m slow $(ARGS)

test-faults: install ## Tests that kill processes and break files on purpose
	$(BIN)/python -m pytest -q -m faults $(ARGS)

lint: install ## Style (ruff), rules of import (import-linter), types (mypy)
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python -m mypy

docs: install ## Check README.md and docs/: links, files, commands, options, targets and variables they name
	$(BIN)/python -m pytest -q tests/test_docs.py $(ARGS)

bench: install ## Accuracy and time of the algorithms, beside other programs where they are installed
	$(BIN)/python benchmarks/bench.py $(ARGS)

bench-night: install ## A night of LS4 through the whole system: seconds and memory per CCD
	$(BIN)/python benchmarks/night.py $(ARGS)

bench-orchestration: install ## What Dagster itself costs per run
	$(BIN)/python benchmarks/orchestration.py $(ARGS)

bench-window: install ## A full window of Dagster, 3,000 exposures of 32 CCDs: pages, new exposures, retire and activate
	$(BIN)/python benchmarks/window.py $(ARGS)

clean: ## Remove caches; products, databases and the virtual environment stay
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
