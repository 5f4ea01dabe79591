# `make demo` and `make test` need Python 3.11 or newer, pip and nothing else: they set up .venv/ first, once per lock
# file. For the demo that is what running needs, for everything else the development tools too.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUN_STAMP := .venv/.runs
STAMP := .venv/.installed
LOCK := requirements.lock
# Of 21,000 modules some two thousand are ever imported: Python compiles those by itself.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile
# What antlr4 is built with, of which there is no wheel: venv's own may be too old; and the build-system of pyproject.toml.
BACKEND := setuptools hatchling hatch-fancy-pypi-readme editables

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow attacks check format docs package reference bench lock

help:
	@echo "make demo        the whole way on drawn images, into runs/demo (DATA=DIR: on your own, runs/demo-DIR)"
	@echo "make test        the fast tests"
	@echo "make test-slow   the tests marked slow"
	@echo "make attacks     what once lost data or misled, tried again through the command, in two minutes"
	@echo "make check       ruff, mypy, import-linter"
	@echo "make format      let ruff mend what it can"
	@echo "make docs        the documentation site, into site/"
	@echo "make package     sdist and wheel, into dist/, looked into and run in a fresh environment"
	@echo "make reference   the tables of docs/api, after a change of options or docstrings"
	@echo "make bench       the benchmarks, into benchmarks/results and docs/images (IMAGES=DIR: JPEG files to load)"
	@echo "make lock        write $(LOCK) anew from pyproject.toml (UPGRADE=1: to the newest versions)"

setup: $(STAMP)

# pip leaves what is already right alone, so a set-up that was interrupted goes on where it stopped.
# As constraints the lock file gives versions and installs nothing: that leaves the development tools out.
$(RUN_STAMP): $(LOCK) pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit("semmae needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	"$(PYTHON)" -m venv .venv
	$(PIP) --constraint $(LOCK) $(BACKEND)
	$(PIP) --constraint $(LOCK) --no-build-isolation --editable .
	@touch $@

$(STAMP): $(RUN_STAMP)
	$(PIP) --requirement $(LOCK)
	@touch $@

demo: $(RUN_STAMP)
	$(BIN)/semmae demo $(if $(DATA),--data "$(DATA)" --out "runs/demo-$(shell basename "$(DATA)")",--out runs/demo)

# By files, for what tests of one file share is made once, in the order of tests/conftest.py; each process takes a core
# and a gigabyte. Assertions as they stand: rewriting them takes every process 15 seconds of its start; what fails is run
# again with them rewritten, to say why.
test: $(STAMP)
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --assert=plain \
		|| { $(BIN)/pytest --last-failed --last-failed-no-failures none; exit 1; }

test-slow: $(STAMP)
	$(BIN)/pytest -m slow

attacks: $(STAMP)
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m attacks

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Every warning is an error: a broken link, a page without its place, an argument that no function has.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tools/check_package.py

# The tables of the reference; a test asks for it when they no longer fit.
reference: $(STAMP)
	$(BIN)/python tools/reference.py

# On a quiet machine, for these are figures of speed: half an hour on two cores, with 20 GB of memory.
bench: $(STAMP)
	$(BIN)/python benchmarks/step.py --ablation
	$(BIN)/python benchmarks/step_profile.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/masking.py
	$(BIN)/python benchmarks/loading.py $(if $(IMAGES),--images "$(IMAGES)")
	$(BIN)/python benchmarks/remote_shards.py
	$(BIN)/python benchmarks/lightning_cost.py
	$(BIN)/python benchmarks/labelling.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/plots.py
	$(BIN)/python benchmarks/tables.py --write

# --universal: one file for Linux and macOS and for every Python we support, told apart by markers.
lock: $(STAMP)
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-annotate \
		--custom-compile-command "make lock" --quiet $(if $(UPGRADE),--upgrade) --output-file $(LOCK)
