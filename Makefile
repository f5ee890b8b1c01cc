# make demo and make test each do all their own set-up: Python 3.11 and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: help setup demo test test-slow test-gpu lint format clean

help:
	@echo "make demo    train a tiny hybrid on CPU, check it, write its report"
	@echo "make test    the CPU test suite; make test-slow the rest of it, which takes longest"
	@echo "make test-gpu RECORD=FILE   the tests that need a GPU; leaves a record in FILE"
	@echo "make lint    ruff and pyright"
	@echo "make setup   the development environment in $(VENV)"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "groundthink needs Python 3.11 or newer; name one: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing into $(VENV), a few minutes the first time"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	@rm -rf $(DEMO)
	$(BIN)/groundthink train --config demo --out $(DEMO)
	$(BIN)/groundthink check $(DEMO)
	$(BIN)/groundthink generate $(DEMO) --prompt "Return the " --tokens 200
	@echo
	@echo "The report:"
	@$(BIN)/groundthink report $(DEMO)

test: setup
	$(BIN)/python -m pytest -m "not gpu and not slow" -n 2

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu" -n 2

test-gpu: setup
	$(BIN)/python benchmarks/gpu_tests.py $(or $(RECORD),benchmarks/records/gpu-tests.jsonl)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) runs build .pytest_cache .ruff_cache
