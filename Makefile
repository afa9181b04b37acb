# Two commands: `make quickstart` (train, test and picture a small SlowFast) and `make test`.
# VENV=path chooses where the environment goes; PYTHON=python3.12 chooses the interpreter that makes it.

VENV ?= .venv
PYTHON ?= python3
OUTPUT ?= output/quickstart
DATA ?= data/motion

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
TESTED = $(VENV)/.installed-test

.PHONY: quickstart test test-all lint format clean help

help:
	@echo "make quickstart   install, make the motion data set, train, test, report ($(OUTPUT)/report.html)"
	@echo "make test         install and run the tests (under ten minutes)"
	@echo "make test-all     the slow tests too"
	@echo "make lint         ruff"
	@echo "VENV=path PYTHON=python3.x choose the environment and the interpreter"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(BIN)/python pyproject.toml setup.py
	@echo "Installing into $(VENV): PyTorch is large, this takes a few minutes the first time ..."
	$(BIN)/python -m pip install --no-compile -e .
	touch $@

$(TESTED): $(INSTALLED)
	$(BIN)/python -m pip install --no-compile -e ".[test]"
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/python tools/make_motion_dataset.py $(DATA)
	$(BIN)/python tools/run_net.py --cfg configs/Motion/SLOWFAST_quickstart.yaml \
		DATA.PATH_TO_DATA_DIR $(DATA) DATA.PATH_PREFIX $(DATA) OUTPUT_DIR $(OUTPUT)

test: $(TESTED)
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(TESTED)
	$(BIN)/python -m pytest -n 2

lint: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(TESTED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf output data build *.egg-info
