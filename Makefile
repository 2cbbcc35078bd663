# The commands of the README. PYTHON is any Python 3.10 to 3.12.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LITERT := .venv-litert
DOCS := .venv-docs
MINI := mnv4_ssdlite_coco-mini

.PHONY: env train test test-fast test-litert mmdeploy litert bench docs lint clean
env: $(VENV)/installed

$(VENV)/installed: requirements/*.txt pyproject.toml tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV)
	touch $@

# Trains from scratch on 64 real pictures (minutes on 2 CPU cores), evaluates, draws. Continues if it was stopped.
train: env
	$(BIN)/python tools/train.py configs/$(MINI).py --resume

# Two at a time, a core each: most of them cannot use more.
test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 25

test-fast: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

# `make env` has it; into another environment: pip install --no-deps -r requirements/mmdeploy.txt
mmdeploy: env
	$(BIN)/python -m pip install --no-deps -r requirements/mmdeploy.txt

# LiteRT's converter, in an environment of its own (6.6 GB). What it makes runs in the main one.
litert: $(LITERT)/installed

$(LITERT)/installed: requirements/litert.txt
	$(PYTHON) -m venv $(LITERT)
	$(LITERT)/bin/python -m pip --disable-pip-version-check install -q -r requirements/litert.txt
	touch $@

# What `make test` skips where there is no such environment; CI has it.
test-litert: env litert
	$(BIN)/python -m pytest tests/deploy/test_litert.py tests/deploy/test_targets.py -k litert

# Beside what else is measured: ultralytics, for nothing but this.
bench: env
	$(BIN)/python -m pip --disable-pip-version-check install -q --no-deps -r requirements/bench.txt
	$(BIN)/python tools/bench.py

# The documentation site, in an environment of its own. Broken links and anchors are errors. Opens at site/index.html.
docs: $(DOCS)/installed
	$(DOCS)/bin/zensical build --strict --clean

$(DOCS)/installed: requirements/docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip --disable-pip-version-check install -q -r requirements/docs.txt
	touch $@

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(LITERT) $(DOCS) site .cache work_dirs outputs
