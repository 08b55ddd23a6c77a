# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
# Pins for development and continuous integration only; a user's own torch is never replaced.
PIP    := $(PY) -m pip --disable-pip-version-check install --quiet --constraint requirements/constraints.txt

# The oldest Triton that is supported, in a folder of its own: tests/gpu/test_triton_oldest.py looks for it.
OLDEST := build/triton-3.6.0

SOURCES := setup.py pyproject.toml requirements/constraints.txt $(wildcard csrc/*)

.DEFAULT_GOAL := help
.PHONY: help install demo test check format night mutants bench docs clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(VENV)/.installed ## set up .venv with everything compiled

# torch comes first: whatever depends on it must find the pinned one.
$(VENV)/.installed: $(SOURCES)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) setuptools wheel pybind11 ninja numpy
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

$(OLDEST): | $(VENV)/.installed
	$(PY) -m pip --disable-pip-version-check install --quiet --no-deps --target $@ triton==$(@:build/triton-%=%)

demo: install ## draw guided digits, a trajectory, and a table of what it cost
	$(VENV)/bin/fastdiff demo --out out

test: install $(OLDEST) ## run the tests
	$(PY) -m pytest

check: install $(OLDEST) ## lint, types, import contract, then the tests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright
	$(VENV)/bin/lint-imports
	$(PY) -m pytest

format: install ## format Python and C++
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/clang-format -i csrc/*.h csrc/*.cpp

night: install ## the long batteries (minutes to hours)
	$(PY) -m pytest -m night

mutants: install ## plant faults in the sources; a test must notice each (about 40 minutes)
	$(PY) -m pytest -m mutants tests/mutants

bench: install ## the performance table, timed as docs/benchmarks.md says
	$(PY) -m pytest benchmarks --benchmark-only

docs: install ## build the documentation into site/
	$(PIP) mkdocs-material
	$(VENV)/bin/mkdocs build --strict

clean: ## remove what was built
	rm -rf build dist out site *.egg-info fastdiff/*.so .pytest_cache .ruff_cache
