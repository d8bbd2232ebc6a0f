# `make demo` and `make test` set everything up by themselves (in .venv) and need neither a GPU nor torchvision.

PYTHON ?= python3
TORCH_VERSION := 2.13.0
# On Linux without an NVIDIA GPU only a CPU build will do: the other brings gigabytes of CUDA libraries. Override with
# `make TORCH=torch==... test`, or put a torch of your own into .venv first.
TORCH ?= torch==$(TORCH_VERSION)$(if $(shell command -v nvidia-smi 2>/dev/null)$(filter Darwin,$(shell uname -s)),,+cpu)
BIN := .venv/bin
# Processes that share the tests of `make test`, file by file. Each needs about 1 GB.
TEST_WORKERS ?= 2

.PHONY: demo test test-slow check docs clean

.venv/ready: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install -q '$(TORCH)' || { \
		echo "No CPU build of torch $(TORCH_VERSION) was found where pip looks. Install one into .venv as the PyTorch site"; \
		echo "describes under 'Start Locally' (CPU), or choose with make TORCH='torch==$(TORCH_VERSION)', then run make again."; exit 2; }
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/ready
	@$(BIN)/python scripts/demo.py demo_out

test: .venv/ready
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile

# One after the other: these start several processes themselves, or use all cores.
test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry autogaze_mllm benchmarks scripts

.venv/docs-ready: .venv/ready
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	@touch $@

docs: .venv/docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv demo_out build site *.egg-info
