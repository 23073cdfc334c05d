# Two commands for a newcomer: make demo, make test. Everything else is for working on the library.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export MPLBACKEND = agg
FAST ?=

.PHONY: env demo test checks lab bench export clean-env

env: $(READY)

$(READY): requirements.lock settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed, and $(PYTHON) is " + sys.version.split()[0] + "; name another:  make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: $(READY)
	$(BIN)/anomaly-nb demo

# FAST=1: only what changed since the merge base with main, in less than 5 minutes
test: export ANOMALY_NB_FAST = $(FAST)
test: $(READY)
	$(BIN)/python -m tests.checks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lab: $(READY)
	env -u MPLBACKEND JUPYTER_CONFIG_PATH=$(CURDIR)/.lab $(BIN)/jupyter lab

bench: $(READY)
	$(BIN)/python -m bench

export: $(READY)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python -m tests.checks readme --write

clean-env:
	rm -rf $(VENV)
