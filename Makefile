# `make demo` and `make test` set everything up by themselves (in .venv) and need neither a GPU nor torchvision.

PYTHON ?= python3
TORCH_VERSION := 2.13.0
# On Linux without an NVIDIA GPU only a CPU build will do: the other brings gigabytes of CUDA libraries. Override with
# `make TORCH=torch==... test`, or put a torch of your own into .venv first.
TORCH ?= torch==$(TORCH_VERSION)$(if $(shell command -v nvidia-smi 2>/dev/null)$(filter Darwin,$(shell uname -s)),,+cpu)
BIN := .venv/bin
# Processes that share the tests of `make test`, file by file. Each needs about 1 GB.
TEST_WORKERS ?= 2

# The oldest transformers that pyproject.toml allows, and what is run with it.
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
# What is compared with options and names that the oldest transformers has not (beams of several pictures are wrong there,
# and checkpointing has other names) is left to the newer one.
OLDEST_TESTS ?= tests/vision tests/mllm --ignore=tests/mllm/test_tools.py --ignore=tests/mllm/test_trainers.py --ignore=tests/mllm/calls/test_generation.py --ignore=tests/mllm/calls/test_streams.py

.PHONY: demo test test-slow test-oldest check docs clean

# A virtual environment in $(1), with torch in it.
define with_torch
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@$(1)/bin/python -c 'import torch' 2>/dev/null || $(1)/bin/python -m pip install -q '$(TORCH)' || { \
		echo "No CPU build of torch $(TORCH_VERSION) was found where pip looks. Install one into $(1) as the PyTorch site"; \
		echo "describes under 'Start Locally' (CPU), or choose with make TORCH='torch==$(TORCH_VERSION)', then run make again."; exit 2; }
endef

.venv/ready: pyproject.toml constraints.txt Makefile
	$(call with_torch,.venv)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

# Its own environment: everything as tested, but for transformers and what must be as old as it.
.venv-oldest/ready: pyproject.toml constraints.txt Makefile
	$(call with_torch,.venv-oldest)
	@grep -v -e '^transformers==' -e '^huggingface_hub==' constraints.txt > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install -q -c .venv-oldest/constraints.txt -e . pytest 'transformers==$(OLDEST)'
	@touch $@

demo: .venv/ready
	@$(BIN)/python scripts/demo.py demo_out

test: .venv/ready
	$(BIN)/python -m pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile

# One after the other: these start several processes themselves, or use all cores.
test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

# The base models as the oldest transformers has them: half of what is told of one there has other names, or none.
test-oldest: .venv-oldest/ready
	.venv-oldest/bin/python -m pytest $(OLDEST_TESTS)

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
	rm -rf .venv .venv-oldest demo_out build site *.egg-info
