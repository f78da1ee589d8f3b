# The commands of this repository. Each makes its own environment first; the second time nothing is installed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
# FAISS comes with or without a GPU; everything else is the same.
FLAVOUR := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
LOCK := $(if $(filter gpu,$(FLAVOUR)),requirements-gpu.lock,requirements.lock)
READY := .venv/ready-$(FLAVOUR)

.PHONY: help install demo test test-slow test-browser test-proxies test-cluster postgresql screenshots openapi lint format bench lock demo-model demo-card clean
help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: $(READY) ## make .venv with the pinned packages
$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "Python 3.11, 3.12 or 3.13 is needed, this is " + sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python $(LOCK)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: $(READY) ## make a small corpus, index it, search it, serve the page
	$(BIN)/xclip-search demo $(DEMO_OPTIONS)

test: $(READY) ## the default tests: CPU, offline, on all cores
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(READY) ## the slow tests too
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not gpu and not browser and not proxy and not cluster'

test-browser: $(READY) ## the page in a headless Chromium
	$(BIN)/python -m pytest -n auto --dist loadfile -m browser

test-proxies: $(READY) ## the page behind nginx and Caddy (needs both, and Chromium)
	$(BIN)/python -m pytest -m proxy

test-cluster: $(READY) postgresql ## the store in PostgreSQL, its processes killed (installs PostgreSQL on Debian)
	XCLIP_TEST_NEED_POSTGRES=1 $(BIN)/python -m pytest -n auto --dist loadfile -m cluster

postgresql:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null \
		|| { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql; }

screenshots: $(READY) ## the page's pictures for the docs (needs Chromium)
	$(BIN)/python -m tests.support.servers.screenshots --output docs/images

openapi: $(READY) ## docs/openapi.json again, after a change of the API
	$(BIN)/python -m service.app > docs/openapi.json

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## the benchmarks in short, within a quarter of an hour
	$(BIN)/python -m benchmarks $(BENCH_OPTIONS)

demo-model: $(READY) ## train the demo checkpoint again (about an hour on two cores)
	$(BIN)/python -m training.demo_model train --output runs/demo-model

demo-card: $(READY) ## the demo checkpoint's tables
	$(BIN)/python -m training.demo_model evaluate --model demo

lock: ## resolve the pinned packages again
	$(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --quiet --no-header --extra cpu --extra train --extra fast --extra hf --extra postgres --extra remote --extra ray --extra parquet --extra otel --extra mcp --extra dev -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --quiet --no-header --extra gpu --extra train --extra fast --extra hf --extra postgres --extra remote --extra ray --extra parquet --extra otel --extra mcp --extra dev -o requirements-gpu.lock

clean: ## remove what the commands made
	rm -rf .venv demo-data runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
