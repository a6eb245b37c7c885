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

.PHONY: demo test test-all check format bench docs docs-serve install clean

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
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q -f docs/site/mkdocs.yml

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m tests.bench $(AREA)

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

# On http://127.0.0.1:8000, built again at every change.
docs-serve: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve -f docs/site/mkdocs.yml

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt .ci/install
	@"$(PYTHON)" -c 'import sys; assert sys.version_info >= (3, 11), sys.version' || \
		{ echo "Holdfast needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	VENV=$(VENV) PYTHON="$(PYTHON)" INSTALLER=$(INSTALLER) .ci/install
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
