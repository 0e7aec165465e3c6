# Each target makes .venv if it is missing, installs leanconv with the tested versions and builds the native core.
# Needs: Python >= 3.11 (with venv and headers), a C++20 compiler, make.   PYTHON=python3.12 make test   picks another one.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/leanconv-installed
NATIVE := $(shell find native CMakeLists.txt -type f -not -path 'native/tests/*' 2>/dev/null)
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile -q

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint wheel clean

help:
	@echo "make demo      train, compile, run and compare 1-bit digits; writes demo/report.html"
	@echo "make test      style, types and the tests that a change must pass"
	@echo "make test-all  the same with the long tests"
	@echo "make lint      style and types alone"
	@echo "make wheel     dist/*.whl and dist/*.tar.gz"
	@echo "make clean     remove .venv and everything built"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "leanconv needs Python 3.11 or newer: PYTHON=python3.12 make ..."; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "python venv is missing: sudo apt-get install python3-venv python3-dev"; exit 1; }

$(STAMP): $(BIN)/python pyproject.toml constraints.txt $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/leanconv demo --out demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf .venv build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
