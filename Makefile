# make demo: search on a small dataset, in under three minutes once the packages are there
# make test: all tests
#
# Both make an environment of their own in .venv first (Python 3.11 or later; PYTHON= names
# another interpreter, VENV= another folder).

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
READY := $(VENV)/.lossearch-ready
SOURCES := lossearch plugins tests docs

# One thread for each test process: two processes that both take all cores slow each other down.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install demo test faults lint docs wheel clean

help:
	@echo "make demo    search for a loss on noisy handwritten digits"
	@echo "make test    run the tests"
	@echo "make faults  kill studies, fill their disk, and see what is left: about an hour"
	@echo "make lint    ruff, pyright, import-linter, and docs/components.md up to date"
	@echo "make docs    write docs/components.md anew"
	@echo "make wheel   build the wheel, and try it from an empty folder"
	@echo "make clean   remove the environment and all that was built (not the results in runs/)"

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lossearch needs Python 3.11 or later, and this is " + sys.version.split()[0] + ": make ... PYTHON=python3.12")'
	@echo "Installing into $(VENV): about 7 GB with torch, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/lossearch run examples/digits.yaml

test: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# LOSSEARCH_FAULTS=5 does each of them 5 times.
faults: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest tests/faults -m slow $(ARGS)

lint: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python
	PYTHONPATH=.:plugins $(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

docs: $(READY)
	$(BIN)/python docs/generate.py

# The wheel is unpacked over the environment's own packages, and used where no source is in reach.
wheel: $(READY)
	rm -rf dist build
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-index --target build/wheel dist/*.whl
	mkdir build/empty
	cd build/empty && export PYTHONPATH='$(CURDIR)/build/wheel' && \
		../wheel/bin/lossearch --version && \
		../wheel/bin/lossearch plugins list > plugins.txt && grep -q '^ *focal ' plugins.txt && \
		../wheel/bin/lossearch space list > spaces.txt && grep -q '^label_noise ' spaces.txt

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache
	find lossearch plugins tests docs -name __pycache__ -type d -exec rm -rf {} +
