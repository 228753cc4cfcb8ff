# Two commands for a fresh clone on a machine with Python and pip: `make train` and `make test`.
# Both may be repeated: what is done is not done again.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/sample
# One more than there are cores: tests also wait, for processes that they start.
JOBS ?= $(shell expr $$(nproc) + 1)
# What `make test` runs side by side. The last one is the largest: its result is shown last.
PARTS := browser cluster unit
LOGS := $(VENV)/logs
# Where the tests hang beyond the limit of each test, they end with a summary after 70 minutes. macOS
# has no such command.
LIMIT := $(and $(shell command -v timeout),timeout --foreground --signal=INT --kill-after=60 70m)
PYTEST := OMP_NUM_THREADS=1 $(LIMIT) $(BIN)/python -u -m pytest

# Tests and training start many Python processes. Without bytecode each of them would compile torch
# and MONAI again, which takes as long as the rest of their import.
unexport PYTHONDONTWRITEBYTECODE

# Sources without a pyproject.toml (deepspeed) would be built with whatever is newest on the index;
# so the pinned build tools go in first, and nothing is fetched for a build.
# Bytecode is left to the first import of each module: compiling all of it takes longer than the
# rest of the installation.
PIP := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check \
  --constraint constraints.txt
# And pip: that of Python 3.11 takes two and a half times the processor time for the rest.
BUILD_TOOLS := pip setuptools hatchling editables

.PHONY: help train test unit cluster browser fuzz chaos lint docs clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 12

train: $(VENV)/.train ## install, make the sample dataset, convert, verify, train, evaluate
	@echo "==> sample dataset: data/raw"
	@$(BIN)/segresmamba sample data/raw
	@echo "==> convert: data/raw -> data/sample.zarr"
	@$(BIN)/segresmamba convert data/raw data/sample.zarr
	@echo "==> verify: data/sample.zarr"
	@$(BIN)/segresmamba verify data/sample.zarr
	@echo "==> train: $(RUN)"
	@$(BIN)/python -m launch train data=sample model=segresmamba_fine_small train=sample train.lr=4e-3 train.max_steps=250 run.name=sample
	@echo "==> evaluate: $(RUN)"
	@$(BIN)/segresmamba evaluate $(RUN)

test: $(VENV)/.test ## install and run every test that needs no GPU
	@mkdir -p $(LOGS)
	@rm -f $(LOGS)/*
	@echo "==> side by side, each shown when it ends (until then in $(LOGS)): $(PARTS)"
	@status=0; \
	$(MAKE) --no-print-directory --keep-going --jobs --output-sync=recurse $(PARTS:%=beside-%) || status=$$?; \
	for part in $(PARTS); do \
	  echo "==> result: $$part"; \
	  grep -E '^(FAILED|ERROR|Success|!!+ |make.* \*\*\*|=+ .* in [0-9.]+s)' $(LOGS)/$$part.log || true; \
	done; \
	exit $$status

# On a new machine each of them would compile the same bytecode and kernels.
beside-browser beside-cluster beside-unit: $(VENV)/.imported

$(VENV)/.imported: $(VENV)/.test
	@$(BIN)/python -c 'import deepspeed, mlflow, monai, segresmamba.engine.trainer, segresmamba.ops.cpu.tri' >/dev/null
	@touch $@

# Into a file and not a pipe: the end of a pipe comes only when the last process that a test has left
# behind is gone. Ctrl-C is for the tests: the shell stays to show their last line.
beside-%:
	@trap : INT; status=0; \
	$(MAKE) --no-print-directory --output-sync=none $* > $(LOGS)/$*.log 2>&1 || status=$$?; \
	cat $(LOGS)/$*.log; \
	exit $$status

unit: $(VENV)/.test
	@echo "==> tests: $(JOBS) processes"
	@# More threads would queue for the same cores.
	@# Neighbours stay in one process, which makes the fixtures that they share once.
	@$(PYTEST) -n $(JOBS) --dist worksteal -m 'not cluster and not browser'

cluster: $(VENV)/.test
	@echo "==> tests on a real Slurm, brought up on this machine where it has one"
	@$(PYTEST) -n 2 --dist worksteal tests/cluster

browser: $(VENV)/.test
	@echo "==> tests in a real browser, where this machine has Chromium"
	@$(PYTEST) tests/browser

MINUTES := 5
SEED :=
fuzz: $(VENV)/.test ## read damaged and hostile files for MINUTES=5, from a random SEED
	@nice $(BIN)/python -m tests.fuzz $(MINUTES) $(SEED)

chaos: $(VENV)/.test ## kills for MINUTES=5, damaged files, outages, full disks ...; a table
	@nice $(BIN)/python -m tests.chaos $(MINUTES)

lint: $(VENV)/.test ## ruff check, ruff format, mypy --strict
	@echo "==> ruff check"
	@$(BIN)/ruff check .
	@echo "==> ruff format"
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy

docs: $(VENV)/.test ## build the documentation into site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "==> site/index.html"

clean: ## delete .venv and caches; data/ and runs/ stay
	@echo "==> delete $(VENV) and caches"
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site
	@find launch segresmamba tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.train: EXTRAS := sample
$(VENV)/.test: EXTRAS := sample,test,dev,docs
$(VENV)/.train $(VENV)/.test: $(VENV)/.tools pyproject.toml
	@echo "==> install segresmamba[$(EXTRAS)] and what it needs into $(VENV)"
	@$(PIP) --no-build-isolation --use-pep517 --editable '.[$(EXTRAS)]'
	@touch $@
	@# What draws volumes for `segresmamba view`. Without npm the command says how to get it.
	@if command -v npm >/dev/null; then $(BIN)/segresmamba view --install-niivue npm || true; fi

$(VENV)/.tools: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is not Python 3.11 or newer; name one that is:" \
	    "make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "==> create $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(BUILD_TOOLS)
	@touch $@
