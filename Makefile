# make run    the course: notebooks 01 to 07 in order, then the report runs/course/report.html
# make test   ruff, pytest with doctests, every notebook in the smoke profile; offline, in minutes
# make test-all   the same, with the tests that take long
# make lab    JupyterLab on the notebooks
# Each target makes the environment .venv first if it is missing.  On a machine without a GPU, add
# TORCH_INDEX=https://download.pytorch.org/whl/cpu to the first call: PyTorch without its gigabytes of CUDA.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/python -m pytest -q --nbval-lax --nbval-current-env -rs \
	--numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
CHECKED := notebooks tests tinylib

.PHONY: run test test-all lab lint

run: $(READY)
	$(BIN)/python -m tinylib course

test: lint
	$(PYTEST) -m "not slow and not network" $(CHECKED)

test-all: lint
	@$(PIP) -e '.[dev,lm-eval]'
	$(PYTEST) -m "not network" $(CHECKED)

lab: $(READY)
	$(BIN)/python -m jupyter lab --notebook-dir . --LabApp.default_url=/lab/tree/notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

lint: $(READY)
	$(BIN)/python -m ruff check $(CHECKED) benchmarks

# The mark is set last, so that an interrupted installation continues at the next call.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tinylib needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "this Python can't make environments (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "making .venv: some minutes the first time, most of them for PyTorch"
	@$(PYTHON) -m venv .venv
	@$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch)
	@$(PIP) -e '.[dev]'
	@touch $@
