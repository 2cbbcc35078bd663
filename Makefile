# The commands of the README. PYTHON is any Python 3.10 to 3.12.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LITERT := .venv-litert
NPU := .venv-npu
DOCS := .venv-docs
UPSTREAM := .venv-upstream
MINIMAL := .venv-minimal
FIRST := mnv4_ssdlite_bccd

.PHONY: env train test test-long test-upstream test-minimal test-litert mmdeploy litert npu bench gpu docs lint clean
env: $(VENV)/installed

$(VENV)/installed: requirements/*.txt pyproject.toml tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV)
	touch $@

# Trains a detector of blood cells from scratch (minutes on 2 CPU cores), exports it to ONNX, compares the file with
# PyTorch, evaluates and reports (work_dirs/mnv4_ssdlite_bccd/report/index.html). Continues if it was stopped.
train: env
	$(BIN)/python tools/train.py configs/$(FIRST).py --resume --no-report
	$(BIN)/python tools/export.py work_dirs/$(FIRST)/epoch_6.pth --to onnx
	$(BIN)/python tools/compare.py work_dirs/$(FIRST)/epoch_6.pth --rounds 5 --out work_dirs/$(FIRST)/exported/compared.json
	$(BIN)/python -m mnv4_mm report work_dirs/$(FIRST)

# What a change must pass. Two workers with a core each: most tests cannot use more.
test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 25

# Full-length training with its bounds, every net in every runtime: hours, before a release (docs/testing.md).
test-long: env litert
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 25 -m long

# The same tests with OpenMMLab's own releases in place of their maintained forks, in an environment of its own (9 GB).
test-upstream: $(UPSTREAM)/installed
	OMP_NUM_THREADS=1 $(UPSTREAM)/bin/python -m pytest -n 2 --dist worksteal --durations 25

$(UPSTREAM)/installed: requirements/*.txt pyproject.toml tools/install.py
	$(PYTHON) tools/install.py --base upstream --venv $(UPSTREAM)
	touch $@

# The same tests with the lowest versions of the ranges in pyproject.toml. As for LiteRT, the environment sees the packages
# of the main one behind its own: torch and mmcv are installed once.
test-minimal: $(MINIMAL)/installed
	OMP_NUM_THREADS=1 $(MINIMAL)/bin/python -m pytest -n 2 --dist worksteal --durations 25

$(MINIMAL)/installed: requirements/minimal.txt pyproject.toml | $(VENV)/installed
	$(BIN)/python -m venv --clear $(MINIMAL)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$($(MINIMAL)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/main.pth
	$(MINIMAL)/bin/python -m pip --disable-pip-version-check install -q -r requirements/minimal.txt
	@echo 'imaug asks for both wheels of OpenCV, which overwrite each other'
	$(MINIMAL)/bin/python -m pip --disable-pip-version-check uninstall -q -y opencv-python-headless
	$(MINIMAL)/bin/python -m pip --disable-pip-version-check install -q --force-reinstall --no-deps \
		$$(grep ^opencv-python== requirements/minimal.txt)
	$(MINIMAL)/bin/python -m pip --disable-pip-version-check install -q --no-deps -e .
	touch $@

# `make env` has it; into another environment: pip install --no-deps -r requirements/mmdeploy.txt
mmdeploy: env
	$(BIN)/python -m pip install --no-deps -r requirements/mmdeploy.txt

# LiteRT's converter holds back packages that others need newer, so it has an environment of its own (0.9 GB). Its .pth
# file lets that environment see the packages of the main one behind its own: torch is installed once. What it converts
# runs in the main environment. pip's complaints about packages of the main environment do not matter there.
litert: $(LITERT)/installed

$(LITERT)/installed: requirements/litert.txt | $(VENV)/installed
	$(PYTHON) -m venv --clear $(LITERT)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		$$($(LITERT)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/main.pth
	$(LITERT)/bin/python -m pip --disable-pip-version-check install -q -r requirements/litert.txt
	touch $@

# What `make test` skips where there is no such environment; CI has it.
test-litert: env litert
	$(BIN)/python -m pytest tests/deploy/test_litert.py tests/deploy/test_targets.py -k litert

# The compilers behind `mnv4 compare --npu`, in an environment of their own (0.6 GB).
npu: $(NPU)/installed

$(NPU)/installed: requirements/npu.txt
	$(PYTHON) -m venv --clear $(NPU)
	$(NPU)/bin/python -m pip --disable-pip-version-check install -q -r requirements/npu.txt
	touch $@

# Installs ultralytics, which only this benchmark needs.
bench: env
	$(BIN)/python -m pip --disable-pip-version-check install -q --no-deps -r requirements/bench.txt
	$(BIN)/python tools/bench.py

# On a machine with a GPU, for which pip installs torch with CUDA: the checks of tests/gpu, images a second and memory of each
# headline config, and with DATA=CAMVID the protocol camvid-full.
gpu: env
	$(BIN)/python -m pytest tests/gpu
	$(BIN)/python tools/bench.py --only gpu --out work_dirs/bench_gpu.json
	$(if $(DATA),$(BIN)/python -m mnv4_mm transfer camvid-full --data $(DATA),@echo 'CamVid is not trained without DATA=FOLDER')

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
	rm -rf $(VENV) $(LITERT) $(NPU) $(DOCS) $(UPSTREAM) $(MINIMAL) site .cache work_dirs outputs build *.egg-info
