# Everything a user or CI does, by name. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/requirements.lock
DOCS_VENV := .venv-docs
DOCS_LOCK := requirements/docs.lock
CHECKPOINT ?=

.PHONY: help setup demo serve test test-full check bench gpu-visit gpu-visit-prepare loadtest settings docs lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## create .venv with every dependency (the other commands do this when needed)

# uv itself comes from the lock, so that nothing unpinned is installed; the stamp makes a second run do nothing.
$(VENV)/.ready: $(LOCK) VERSION engine/pyproject.toml client/pyproject.toml gateway/pyproject.toml \
    batch/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 12) else \
	    f"Python 3.10 to 3.12 is needed, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	@echo "setup: virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@uv=$$(command -v uv || echo $(BIN)/uv); \
	test -x "$$uv" || { echo "setup: installing uv"; \
	    sed -n '/^uv==/,/^    # via/p' $(LOCK) > $(VENV)/uv.txt; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(VENV)/uv.txt; }; \
	echo "setup: installing the locked dependencies (about 5 GB with CUDA the first time)"; \
	"$$uv" pip sync --quiet --python $(BIN)/python --require-hashes $(LOCK); \
	echo "setup: installing engine, client, gateway and batch"; \
	"$$uv" pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e engine -e client -e gateway -e batch
	@touch $@

bench: $(VENV)/.ready ## measure beside upstream in the same run (NAME=t3 for one; files in out/bench/)
	@$(BIN)/python -m bench $(NAME)

gpu-visit: $(VENV)/.ready ## test and measure all on a GPU in at most 10 minutes (VISIT=options; files in out/visit/)
	@$(BIN)/python -m bench.visit $(VISIT)

gpu-visit-prepare: $(VENV)/.ready ## wheels and compiled kernels for a visit, made without a GPU (VISIT="--capability 90")
	@$(BIN)/python -m bench.prepare $(VISIT)

demo: $(VENV)/.ready ## start a server, speak one sentence over HTTP, stream one over gRPC, into out/, stop it
	@$(BIN)/python -m demo $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT))

serve: $(VENV)/.ready ## run the server (CHECKPOINT=folder or hub id, default demo)
	@$(BIN)/chatterbox-serve $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT))

# One thread each: the tests' networks are tiny, and servers run beside them, so teams of threads would only spin. Two
# processes: one often waits for a server. Tiny networks take less time than oneDNN's programs for new shapes: all are kept.
test: $(VENV)/.ready ## all tests but the full-size ones
	@OMP_NUM_THREADS=1 ONEDNN_PRIMITIVE_CACHE_CAPACITY=1024 $(BIN)/python -m pytest -m "not full" --numprocesses 2 --dist worksteal

test-full: $(VENV)/.ready ## all tests
	@$(BIN)/python -m pytest

loadtest: $(VENV)/.ready ## load a server with Locust (HOST=, USERS=32, SCENARIO=mixed, DURATION=, WORKERS=0); report in out/loadtest
	@$(BIN)/python -m loadtest $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) $(if $(HOST),--host $(HOST)) $(if $(USERS),--users $(USERS)) \
	    $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(DURATION),--duration $(DURATION)) \
	    $(if $(WORKERS),--workers $(WORKERS)) $(LOADTEST)

check: $(VENV)/.ready ## ruff, mypy, sizes, words, links and names in the documents, deployment files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@for model in model_repository/*/1/model.py; do echo "mypy $$model"; $(BIN)/mypy $$model; done
	@$(BIN)/python -m tools.docs.settings --check
	@$(BIN)/python -m tools.docs.links
	@$(BIN)/python -m tools.docs.names
	@$(BIN)/python -m tools.docs.words
	@$(BIN)/python -m tools.sizes
	@$(BIN)/python -m deploy.check

settings: $(VENV)/.ready ## write the table of settings into docs/settings.md
	@$(BIN)/python -m tools.docs.settings

# In an environment of its own: the site's generator reads the sources and needs none of the project's dependencies.
docs: $(DOCS_VENV)/.ready ## build the documents as a site in out/site
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --quiet --strict
	@echo "docs: out/site/index.html"

$(DOCS_VENV)/.ready: $(DOCS_LOCK)
	@test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	@echo "docs: installing the site's generator"
	@$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(DOCS_LOCK)
	@touch $@

lock: ## resolve requirements.in and docs.in again
	@uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-header \
	    --overrides requirements/overrides.txt requirements/requirements.in -o $(LOCK)
	@uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-header \
	    requirements/docs.in -o $(DOCS_LOCK)

clean: ## remove the virtual environment and everything generated
	@rm -rf $(VENV) $(DOCS_VENV) out build
