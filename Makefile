# What a target needs is installed into .venv on first use: a part for the demo, all of it for the other targets. With it
# there, each target starts at once.
#   make demo     train two nets on real digits, with aging curves at the end
#   make test     lint, types, architecture, doctests and tests: what CI runs
#   make bench    measure what the package costs; results go to benchmarks/results
#   make lint     lint, types and architecture alone
#   make clean    remove .venv and what was built
# WORKERS=8 runs so many tests at once, instead of two. Each worker needs about two GB of memory.
# CONSTRAINTS= installs the newest versions that the ranges in pyproject.toml allow, instead of the tested set.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
BIN := .venv/bin
DEMO := .venv/.demo
READY := .venv/.ready
# Python compiles each module at its first import. To compile all of them at once takes longer.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: demo test lint bench clean

demo: $(DEMO)
	$(BIN)/python -m examples.digits

test: lint
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks

# A stamp is written at the very end, so that an install that was interrupted is taken up again. Without pip, not even
# the environment was complete.
$(DEMO): pyproject.toml $(wildcard constraints.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "lightning_glassy needs Python 3.10 or newer; PYTHON=... names one")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@echo 'Installing PyTorch, Lightning and what draws the curves into .venv: some minutes, once'
	$(PIP) --editable '.[demo]'
	@touch $(DEMO)

# torchmetrics, and so lightning, imports torchvision wherever it is installed: one that does not fit torch breaks both,
# and had better be found here.
$(READY): $(DEMO) pyproject.toml $(wildcard constraints.txt)
	@echo 'Installing linters, tests and all loggers into .venv: some minutes, once'
	$(PIP) --editable '.[dev,all]'
	$(BIN)/python -c 'import torch, torchvision, lightning'
	@touch $(READY)

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
