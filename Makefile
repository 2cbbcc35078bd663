# The commands of the README. PYTHON is any Python 3.10 to 3.12.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINI := mnv4_ssdlite_coco-mini

.PHONY: env train test test-fast bench lint clean
env: $(VENV)/installed

$(VENV)/installed: requirements/*.txt pyproject.toml tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV)
	touch $@

# Trains from scratch on 64 real pictures (minutes on 2 CPU cores), evaluates, draws. Continues if it was stopped.
train: env
	$(BIN)/python tools/train.py configs/$(MINI).py --resume

test: env
	$(BIN)/python -m pytest

test-fast: env
	$(BIN)/python -m pytest -m 'not slow'

bench: env
	$(BIN)/python tools/bench.py

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) work_dirs outputs
