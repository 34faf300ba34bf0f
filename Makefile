# make install   set up .venv
# make demo   train a bundle on generated images before your eyes (BUNDLE=cxr)
# make test   run the tests;  make check   tests, linter, types
# make test-generative   run the tests with monai-generative, in .venv-generative
# make test-federated   train over three sites with NVIDIA FLARE, which is added to .venv
# make test-dicom   check DICOM files against the standard's tables with dicom-validator, which is added to .venv
# make test-oldest   run the tests of data, networks and sampling with numpy 1 and pydicom 2, in .venv-oldest
# make test-monailabel   run the app for MONAI Label in its own server, in .venv-monailabel (some GB)
# make bundles   build the wheel and a zip per bundle into dist (OPTIONS="--folders", "--weights-url https://HOST/FOLDER")
# Each sets up .venv by itself on a machine that has git, make and Python 3.10 or newer.
PYTHON ?= python3
BUNDLE ?= cxr
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-slow test-dicom test-federated test-generative test-oldest test-monailabel lint check bundles clean

install: $(VENV)/installed

demo: $(VENV)/installed
	rm -rf runs/demo/$(BUNDLE)
	$(BIN)/medfusion demo --bundle bundles/medfusion_$(BUNDLE) --output runs/demo/$(BUNDLE)

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

# monai-generative needs an older MONAI than the other tests run with, so it has an environment of its own.
test-generative: $(VENV)-generative/installed
	$(VENV)-generative/bin/python -m pytest tests/generative

test-dicom: $(VENV)/conformance
	$(BIN)/python -m pytest -m slow tests/sampling

test-federated: $(VENV)/federated
	$(BIN)/python -m pytest -m slow tests/federated

# MONAI Label and other programs beside us keep numpy below 2 and pydicom below 3.
test-oldest: $(VENV)-oldest/installed
	$(VENV)-oldest/bin/python -m pytest tests/data tests/networks tests/diffusion tests/sampling \
		tests/bundles/test_inference.py tests/bundles/test_files.py tests/export/test_pacs.py

# MONAI Label has about 150 requirements, and runs with numpy 1 and pydicom 2 only.
test-monailabel: $(VENV)-monailabel/installed
	$(VENV)-monailabel/bin/python -m pytest -m "slow or not slow" tests/apps/monailabel

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: test lint

bundles: $(VENV)/installed
	$(BIN)/python tools/build_bundles.py --output dist $(OPTIONS)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/conformance: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[conformance]'
	touch $@

$(VENV)/federated: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[federated]'
	touch $@

$(VENV)-generative/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-generative
	grep -v '^monai==' constraints.txt > $(VENV)-generative/constraints.txt
	$(VENV)-generative/bin/python -m pip install --quiet --constraint $(VENV)-generative/constraints.txt \
		--editable '.[dev,generative]'
	touch $@

# The lines of constraints-oldest.txt take the place of those of the same packages in constraints.txt.
$(VENV)-oldest/installed: pyproject.toml constraints.txt constraints-oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	sed -n 's/==.*/==/p' constraints-oldest.txt | sed 's/^/^/' | grep -v -f - constraints.txt \
		| cat - constraints-oldest.txt > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint $(VENV)-oldest/constraints.txt --editable '.[dev]'
	touch $@

$(VENV)-monailabel/installed: pyproject.toml constraints.txt constraints-monailabel.txt
	$(PYTHON) -m venv $(VENV)-monailabel
	sed -n 's/==.*/==/p' constraints-monailabel.txt | sed 's/^/^/' | grep -v -f - constraints.txt \
		| cat - constraints-monailabel.txt > $(VENV)-monailabel/constraints.txt
	$(VENV)-monailabel/bin/python -m pip install --quiet --constraint $(VENV)-monailabel/constraints.txt \
		--editable '.[dicom,label]' pytest
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-generative $(VENV)-oldest $(VENV)-monailabel runs build dist *.egg-info
