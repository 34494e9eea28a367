# Everything runs in $(VENV), which `setup` makes from a bare Python 3.11 or newer.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-for-compactmtl
# One process a core and one thread a process: small models gain nothing from more threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
# Strict: a link, page or anchor that is missing fails. Nothing is read from a network.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file tools/mkdocs.yml

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast docs check

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with the tested versions and install compactmtl into it

# On Linux, PyPI's torch brings CUDA (about 5 GB). Without a GPU, a fifth of that will do:
#   make setup PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
$(STAMP): pyproject.toml tools/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c tools/constraints.txt -e '.[cpu,dev]'
	@touch $@

demo: $(STAMP) ## train, compact, export, verify and report on rendered rooms; up to 8 minutes on two cores
	$(BIN)/compactmtl demo

test: $(STAMP) ## every test that needs no GPU
	$(PYTEST) -m 'not gpu'

test-fast: $(STAMP) ## the unit tests
	$(PYTEST) -m 'not gpu and not slow'

docs: $(STAMP) ## write the reference pages from the code and build docs/ into site/
	$(BIN)/python -m tools.reference
	$(MKDOCS)

check: $(STAMP) ## format, lint, types, import direction, wheel contents, pages and their links
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/project
	$(MKDOCS)
