# Two commands do everything on a fresh machine: `make run` and `make test`. Both install first.

PYTHON  ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
               $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
METHODS ?= ebjdat,trades
DATASET ?= digits
SEEDS   ?= 0
WORKERS ?= 2
BENCHMARKS ?=
ARGS    ?=

VENV      := .venv
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help install run test test-slow bench lint clean

help:
	@echo "make run      install, train and evaluate METHODS=$(METHODS) on DATASET=$(DATASET) with SEEDS=$(SEEDS), print the leaderboard"
	@echo "make test     install, lint, check types, run the tests: five minutes on two cores"
	@echo "make test-slow  install, run the thorough versions of some tests, which \`make test\` leaves out"
	@echo "make bench    install, measure speed, overhead and memory here (BENCHMARKS='overhead memory' for some of it)"
	@echo "make install  create $(VENV) with everything (about 6 GB)"
	@echo "make lint     lint and check types only"
	@echo "make clean    remove $(VENV), caches and build products; runs/, data/ and leaderboards/ stay"

install: $(INSTALLED)

# The stamp is written last: an installation that was interrupted is taken up again by the next call.
$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Trilemma needs Python 3.11 or newer; name one with make PYTHON=/path/to/python3." >&2; exit 1; }
	@echo "Installing into $(VENV): about 6 GB, once."
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --upgrade pip
	@$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

run: install
	$(VENV)/bin/python -m benchmark run --methods "$(METHODS)" --dataset "$(DATASET)" --seeds "$(SEEDS)" --workers "$(WORKERS)" $(ARGS)

bench: install
	$(VENV)/bin/python -m benchmarks $(BENCHMARKS) $(ARGS)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

# pytest comes last, so that its summary closes the output. Tests of one xdist_group share a worker, one after the other.
PYTEST := $(VENV)/bin/python -m pytest -n auto --maxprocesses 8 --dist loadgroup --durations 25

test: lint
	$(PYTEST)

test-slow: install
	$(PYTEST) -m slow

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
	find methods benchmark benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
