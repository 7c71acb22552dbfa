# `make help` shows the ways.
PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test test-vm test-nri test-docker bench test-unit check lint types proto fresh format clean

help: ## show this
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: ## set everything up, start a private daemon, run a container from the embedded image (as root)
	@.ci/setup demo
	@$(PYTHON) -m tests.demo

test: ## set everything up and run the whole suite (as root)
	@.ci/setup test
	@$(PYTHON) -m pytest -q -n 2 --reruns 1 --timeout 240 $(ARGS)

test-vm: ## in guests: cgroup v2, other kernels, crun, criu, power cuts (as root; 2-3 minutes)
	@.ci/setup vm
	@$(PYTHON) -m pytest -q tests/vm $(ARGS)

test-nri: ## NRI with a plugin in Go, on the library that plugins are written with (as root; 2 minutes)
	@.ci/setup nri
	@$(PYTHON) -m pytest -q tests/nri $(ARGS)

test-docker: ## Docker with containerd's image store, and BuildKit (as root, on Debian 13; 1 minute)
	@.ci/setup docker
	@$(PYTHON) -m pytest -q tests/docker $(ARGS)

bench: ## compare with Debian's containerd (as root, a quiet machine): make bench ARGS="run fleet --runs 30"
	@.ci/setup test
	@$(PYTHON) -m tests.bench $(or $(ARGS),all)

test-unit: ## the tests that need neither root nor a kernel feature: seconds
	@$(PYTHON) -m pytest -q tests/unit $(ARGS)

check: lint types fresh ## what CI checks before the tests

lint: ## ruff: style and formatting
	@$(PYTHON) -m ruff check --no-cache .
	@$(PYTHON) -m ruff format --no-cache --check .

types: ## mypy --strict
	@$(PYTHON) -m mypy

fresh: ## the generated stubs agree with proto/
	@$(PYTHON) proto/generate.py --check

proto: ## compile proto/ to runtimed/api
	@$(PYTHON) proto/generate.py

format: ## let ruff rewrite what it can
	@$(PYTHON) -m ruff check --no-cache --fix .
	@$(PYTHON) -m ruff format --no-cache .

clean: ## remove what was built and the virtual environment
	rm -rf .venv build dist runtimed/embedded/layout .mypy_cache .ruff_cache .hypothesis
