# make demo   train a bundle on generated images before your eyes (BUNDLE=cxr)
# make test   run the tests;  make check   tests, linter, types
# Each sets up .venv by itself on a machine that has git, make and Python 3.10 or newer.
PYTHON ?= python3
BUNDLE ?= cxr
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint check clean

demo: $(VENV)/installed
	rm -rf runs/demo/$(BUNDLE)
	$(BIN)/medfusion demo --bundle bundles/medfusion_$(BUNDLE) --output runs/demo/$(BUNDLE)

test: $(VENV)/installed
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: test lint

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
