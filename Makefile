# Every verb works on a fresh clone: what is missing is installed first, into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# uv or pip; auto: uv where it is there or can be had from the package index, else pip.
INSTALLER ?= auto
AREA ?= loop
# Tests that run side by side; those of one file follow each other.
WORKERS ?= 2

# One thread a library: tests, trainers and benchmarks share few cores.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-all check format bench install clean

demo: $(STAMP)
	$(BIN)/holdfast demo

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m tests.bench $(AREA)

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt .ci/install
	@"$(PYTHON)" -c 'import sys; assert sys.version_info >= (3, 11), sys.version' || \
		{ echo "Holdfast needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	VENV=$(VENV) PYTHON="$(PYTHON)" INSTALLER=$(INSTALLER) .ci/install
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
