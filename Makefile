# Every target sets itself up: a virtual environment with the tested versions, made again when they change.
# PYTHON names the interpreter (3.11 or newer), VENV the environment's folder.
PYTHON ?= python3
VENV ?= .venv

SHELL := /bin/bash
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Two processes of one thread each: PyTorch's threads spin while they wait, and hold each other up.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# The oldest triton that the kernels are compiled with; `make check` keeps it beside the environment.
OLDEST := $(VENV)/triton-3.6

# The oldest transformers that encoders are read with, and what it needs that the environment has newer or not at all.
OLDEST_TEXT := $(VENV)/transformers-4.57
OLDEST_TEXT_PACKAGES := transformers==4.57.6 huggingface-hub==0.36.2 tokenizers==0.22.2 requests==2.34.2 urllib3==2.8.0 \
	certifi==2026.10.18 charset-normalizer==3.5.2

.PHONY: demo test check aot clean

demo: $(INSTALLED)
	$(BIN)/haste demo

test: $(INSTALLED)
	$(PYTEST)

check: $(INSTALLED) $(OLDEST) $(OLDEST_TEXT)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST) -m slow

# Registers, shared memory and instructions of every kernel, shape and target, compiled without a GPU: an hour.
aot: $(INSTALLED)
	$(BIN)/python -W ignore -m haste.ops.triton.aot --full --jobs 2 --output benchmarks/results/kernels-compiled.jsonl

$(OLDEST): $(INSTALLED)
	$(BIN)/python -m pip install -q --no-deps --target $@ triton==3.6.0

$(OLDEST_TEXT): $(INSTALLED)
	$(BIN)/python -m pip install -q --no-deps --target $@ $(OLDEST_TEXT_PACKAGES)

# torch goes first, alone: nothing that comes after may then ask for another, larger build.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "PYTHON ($(PYTHON)) must be Python 3.11 or newer; try: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
