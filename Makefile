# What a target needs is installed into .venv on first use: a part for the demo, all of it for the other targets. With it
# there, each target starts at once.
#   make demo          train two nets on real digits, with aging curves at the end
#   make test          lint, types, architecture, doctests, site and tests: everything that CI runs
#   make docs          build the site in build/site
#   make bench         measure the cost of the package. Results go to benchmarks/results
#   make lint          lint, types and architecture alone
#   make test-lowest   the tests with the lowest version of each dependency, on LOWEST_PYTHON, in .venv-lowest
#   make test-install  build wheel and sdist, and install them with each extra into an empty environment
#   make dist          build wheel and sdist in dist
#   make hooks         check each commit: lint, spelling, prose, and the length of its subject
#   make clean         remove .venv and everything that was built
# WORKERS=8 runs so many tests at once, instead of two. Each worker needs about two GB of memory.
# CONSTRAINTS= installs the newest versions that the ranges in pyproject.toml allow, instead of the tested set.

PYTHON ?= python3
LOWEST_PYTHON ?= python3.10
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
BIN := .venv/bin
DEMO := .venv/.demo
READY := .venv/.ready
LOWEST := .venv-lowest/.ready
PYTEST := --numprocesses $(WORKERS) --dist worksteal
# Python compiles each module at its first import. To compile all of them at once takes longer.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: demo test docs lint bench test-lowest test-install dist hooks clean

demo: $(DEMO)
	$(BIN)/python -m examples.digits

test: lint
	$(BIN)/python -m pytest $(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/oxlint --quiet --deny-warnings lightning_glassy/report/static tests/javascript
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'The site is in build/site. Its search needs a server: $(BIN)/python -m http.server --directory build/site'

bench: $(READY)
	$(BIN)/python -m benchmarks

# Old versions warn of newer neighbours, which is not the matter of these tests.
test-lowest: $(LOWEST)
	.venv-lowest/bin/python -m pytest $(PYTEST) -W ignore::DeprecationWarning -W ignore::FutureWarning

test-install: $(READY)
	$(BIN)/python -m pytest tests/test_release.py -m ''

dist: $(READY)
	$(BIN)/python -m build --no-isolation

hooks: $(READY)
	$(BIN)/pre-commit install --hook-type pre-commit --hook-type commit-msg

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

$(LOWEST): $(READY) pyproject.toml
	@echo 'Installing the lowest versions into .venv-lowest: some minutes, once'
	$(BIN)/uv venv --quiet --clear --python $(LOWEST_PYTHON) .venv-lowest
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-lowest --resolution lowest-direct --editable '.[dev,all]'
	@touch $(LOWEST)

clean:
	rm -rf .venv .venv-lowest dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
