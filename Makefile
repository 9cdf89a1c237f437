# Everything needed is installed into .venv on first use; with it there, each target starts at once.
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
READY := .venv/.ready

.PHONY: demo test lint bench clean

demo: $(READY)
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

# torchmetrics, and so lightning, imports torchvision wherever it is installed: one that does not fit torch breaks both,
# and had better be found here.
$(READY): pyproject.toml $(wildcard constraints.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "lightning_glassy needs Python 3.10 or newer; PYTHON=... names one")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[dev,all]'
	$(BIN)/python -c 'import torch, torchvision, lightning'
	@touch $(READY)

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
