# `make demo` and `make test` set everything up by themselves: Python 3.11 or newer is all that a machine needs.
# Another Python: `make test PYTHON=/path/to/python3.12`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
READY := .venv/.installed
DOCS_READY := .venv/.installed-docs
# The first of these that runs and is new enough.
PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,$(shell $(python) -c \
	'import sys; print("$(python)") if sys.version_info >= (3, 11) else None' 2>/dev/null)))
# Two processes of one thread: the small networks here lose more to hand-over than they win by threads, and two torch
# processes that each take every core slow each other tenfold.
TEST_PROCESSES ?= 2
TEST_THREADS ?= 1

.PHONY: help demo test test-slow fuzz lint docs docs-serve bench bench-scale clean install browser

help:
	@echo 'make demo   train a generator on digits and ask it for networks: tables, and pictures in demo-output/'
	@echo 'make test   the tests (make test-slow: those that take minutes)'
	@echo 'make fuzz   10,000 damaged folders: each must open rightly, or say what is wrong in one sentence'
	@echo 'make lint   ruff and mypy'
	@echo 'make docs   the documentation as a site in site/, to be opened at site/index.html (make docs-serve: while writing)'
	@echo 'make bench  the measured comparisons, which write benchmarks/RESULTS.md (BENCH="--peer-source A B": with peers)'
	@echo 'make bench-scale  how time and memory grow with networks and sets of them (BENCH="--peer-source A")'
	@echo 'make clean  remove what the above wrote, .venv included'

demo: $(READY)
	$(BIN)/pdiff run digits-subsets --output-dir demo-output --override collect.num_tasks=50 \
		--override collect.held_out_tasks=20 --override autoencoder.max_components=64 \
		--override generate.num_inference_steps=50 --override evaluate.fit_tasks=2 \
		--override 'evaluate.num_labels=[50]'

test: $(READY) browser
	OMP_NUM_THREADS=$(TEST_THREADS) MKL_NUM_THREADS=$(TEST_THREADS) \
		$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

# One process with all threads, since some of these measure time.
test-slow: $(READY)
	OMP_NUM_THREADS=$(TEST_PROCESSES) MKL_NUM_THREADS=$(TEST_PROCESSES) $(BIN)/python -m pytest -m 'slow and not gpu'

fuzz: $(READY)
	$(BIN)/python tests/fuzz.py --mutations 10000 --seed 1

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

bench: $(READY)
	$(BIN)/python benchmarks/run_all.py $(BENCH)

bench-scale: $(READY)
	$(BIN)/python benchmarks/growth.py $(BENCH)

clean:
	rm -rf .venv demo-output test-output runs site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(READY)

# Chromium, for the tests that look at a page. Only a package manager can install it: done here where that asks nobody
# (Debian, root), said where not. Whether tests then skip or fail is decided in tests/browser.py.
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then exit; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo 'No chromium and chromedriver here, and only root on Debian installs them by itself: tests that look' \
			'at a page will be skipped.' >&2; exit; \
	fi; \
	echo 'Installing chromium and chromium-driver with apt-get, once (about a minute) ...'; \
	log=$$(mktemp); export DEBIAN_FRONTEND=noninteractive; \
	apt="apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120"; \
	if ! { $$apt update && $$apt install -y --no-install-recommends chromium chromium-driver; } >"$$log" 2>&1; then \
		tail -n 20 "$$log" >&2; \
		echo 'apt-get could not install chromium and chromium-driver (above: why).' >&2; \
	fi; \
	rm -f "$$log"

# The build tools are installed first and pinned too; a build in isolation would fetch whatever is newest.
$(READY): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'No Python 3.11 or newer found; give one: make PYTHON=/path/to/python' >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev,space,tensorboard,transformers]'
	touch $(READY)

# Only those who build the site need these, so `make demo` does not wait for them.
$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[docs]'
	touch $(DOCS_READY)
