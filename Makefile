# make run    the course: notebooks 01 to 06 in order, then the report runs/course/report.html
# make test   everything that is checked, offline, in minutes; make test-all adds what is long by nature
# make lab    JupyterLab on the notebooks
# Each target makes the environment .venv first if it is missing.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/python -m pytest -q --nbval-lax --nbval-current-env -rs
CHECKED := tests tinylib notebooks

.PHONY: run test test-all lab bench lint doctor help

run: $(READY)
	$(BIN)/python -m tinylib course

test: lint
	$(PYTEST) -m "not slow and not network" $(CHECKED)

test-all: lint
	$(PYTEST) -m "not network" $(CHECKED)

lab: $(READY)
	$(BIN)/python -m jupyter lab --notebook-dir notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

bench: $(READY)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

lint: $(READY)
	$(BIN)/python -m ruff check $(CHECKED) benchmarks

doctor: $(READY)
	$(BIN)/python -m tinylib doctor

help:
	@grep '^# make' Makefile | cut -c3-

# The mark is set last: an installation that was interrupted goes on at the next call.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tinylib needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "this Python can't make environments (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "making .venv: some minutes the first time, most of them for PyTorch"
	@$(PYTHON) -m venv .venv
	@$(PIP) torch
	@$(PIP) -e '.[dev]'
	@touch $@
