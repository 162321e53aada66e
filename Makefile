# make demo    train a diffusion model on real digits, here, in minutes
# make test    the fast tests
# make check   everything CI runs: lint, types, layers, all tests
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check lint types layers clean

demo: .venv/demo
	$(BIN)/suffuse demo

test: .venv/dev
	$(BIN)/python -m pytest -n 2 -m "not slow and not processes"
	$(BIN)/python -m pytest -m "processes and not slow"

check: lint types layers
	$(BIN)/python -m pytest -n 2 -m "not processes" --durations=10
	$(BIN)/python -m pytest -m processes

lint: .venv/dev
	$(BIN)/ruff check src tests benchmarks

types: .venv/dev
	$(BIN)/basedpyright

layers: .venv/dev
	$(BIN)/lint-imports

# torch goes first and alone: a resolver that meets it later may take a build with gigabytes of CUDA
.venv/torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	touch $@

.venv/demo: .venv/torch pyproject.toml
	$(PIP) --editable ".[data]"
	touch $@

.venv/dev: .venv/torch pyproject.toml
	$(PIP) --editable ".[dev]"
	touch .venv/demo $@

clean:
	rm -rf .venv runs
