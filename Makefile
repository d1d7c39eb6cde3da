# Every command for people and for CI. `make` without a target lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help env demo serve test check lint types contracts suite unit chaos format clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

env: $(STAMP) ## the virtual environment, from requirements.lock

# torch is installed first and separately: later installs find the pinned build and do not replace it.
$(STAMP): requirements.lock requirements-alone.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-alone.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## one real job on a real model, start to finish, then a clean stop
	$(BIN)/quantry demo

serve: $(STAMP) ## the service, until Ctrl-C
	$(BIN)/quantry serve

test: $(STAMP) check suite ## environment, lint, types, contracts and the whole test suite

check: lint types contracts ## everything static

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports --no-cache

# These kill and freeze processes and hold recovery to a minute, so they have the machine to themselves. All other tests
# run three at a time: many of them wait, for processes, deadlines or pip. Those begin, so that none is left last.
ALONE := tests/faults/promises $(addprefix tests/faults/,test_cancel_is_durable.py test_chaos.py test_commit_gap.py \
	test_silent_network.py)
WAITING := tests/packaging tests/e2e tests/faults/test_exact_resume.py tests/integration/worker
suite: $(STAMP) ## every test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(WAITING) tests \
		$(addprefix --ignore=,$(ALONE))
	$(BIN)/pytest $(ALONE)

unit: $(STAMP) ## tests of your choice: make unit ARGS='tests/unit/jobs -k hadamard'
	$(BIN)/pytest $(ARGS)

chaos: $(STAMP) ## inject seeded faults into the running service and report pass or fail: make chaos MINUTES=30 [SEED=1] [SERVERS=debian]
	$(BIN)/python -m tests.faults.chaos --minutes $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED)) \
		--servers $(or $(SERVERS),embedded) --output var/chaos/verdict.json

format: $(STAMP) ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and what the service wrote here
	rm -rf $(VENV) var build *.egg-info
