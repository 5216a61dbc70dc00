# Every target works from a bare clone: the first one run makes .venv and installs everything pinned in it.
# On a machine that has what is needed already (a GPU machine, say), name its interpreter: make gpu-check PYTHON=python3
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
SEED ?= $(shell date +%s)
CASES ?= machine

ifeq ($(origin PYTHON),undefined)
  PYTHON := $(VENV)/bin/python
  ORIENT := $(VENV)/bin/tvm-orient
  READY := $(VENV)/.installed
else
  ORIENT := $(PYTHON) -m tvm_orient
  READY :=
endif

.PHONY: help install demo test test-long lint fuzz machine-code witness docs docs-pages docs-pictures bench gpu-check gpu-bench gpu-tune gpu-sanitize gpu-kit build-wheel clean

help: ## print this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

install: $(READY) ## make .venv with everything pinned (every other target does this first)

demo: $(READY) ## filter photographs along several directions, check and time the kernels, write pictures to demo_out/
	$(ORIENT) demo

test: lint ## lint, then the tests but the long ones (those that need a GPU are skipped where there is none)
	$(PYTHON) -m pytest -q -n auto --dist worksteal

test-long: $(READY) ## what is long and rarely tells: sweeps in full, of which `make test` runs a sample
	$(PYTHON) -m pytest -q -n auto --dist worksteal -m long

# mypy knows nothing of __path__, so it is shown the tree as a wheel has it: schedules inside the package
lint: $(READY) ## ruff, ruff format and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	@rm -rf .lint && mkdir -p .lint/tvm_orient && cd .lint/tvm_orient && ln -s ../../tvm_orient/* ../../schedules ../../tuning_logs .
	$(PYTHON) -m mypy .lint/tvm_orient

fuzz: $(READY) ## the property tests at length, from a fresh seed (SEED=... repeats a run)
	$(PYTHON) -m pytest -q -m hypothesis --hypothesis-profile=fuzz --hypothesis-seed=$(SEED)

machine-code: $(READY) ## the machine code of every CUDA template executed at length, without a GPU (hours; CASES=defaults for a part)
	$(PYTHON) -m pytest -q -n auto -m sweep -k "$(CASES)" -rP

witness: $(READY) ## what generated code is, as hashes: written to build/witness.json, or WITNESS=FILE compares
	$(PYTHON) -m benchmarks.static.witness $(if $(WITNESS),--against $(WITNESS),--out build/witness.json)

docs: $(READY) ## the documentation as HTML, in build/docs; a warning is an error
	$(PYTHON) -m sphinx -b html -W --keep-going -q -E -d build/docs-state docs build/docs

docs-pages: $(READY) ## write docs/templates.md, the table of packages and their picture again
	$(PYTHON) docs/templates_page.py
	$(PYTHON) docs/packages.py

docs-pictures: $(READY) ## draw the pictures of docs/semantics.md again
	$(PYTHON) docs/pictures.py

# rasterised kernels and the gather are left out: where they were timed they took 50 times as long as ours and more
bench: $(READY) ## time the CPU kernels against the fastest peers (about 50 minutes)
	$(PYTHON) -m benchmarks.speed.run --target cpu --cold --repeats 15 --patience 90 $(addprefix --without ,raster grouped_raster compiled_gather)

gpu-check: $(READY) ## the tests that need a GPU
	$(PYTHON) -m pytest -m gpu -q

gpu-bench: $(READY) ## time the CUDA kernels against the fastest peers
	$(PYTHON) -m benchmarks.speed.run --target cuda

gpu-tune: $(READY) ## tune the CUDA kernels that ship, and write their records to tuning_logs/
	$(PYTHON) -m benchmarks.gpu.tune

gpu-sanitize: $(READY) ## every CUDA template on small problems under compute-sanitizer: memcheck, racecheck
	$(PYTHON) -m benchmarks.gpu.sanitize

gpu-kit: $(READY) ## compile here what a GPU machine without a compiler is to run, most telling first, and pack it (docs/gpu.md)
	$(PYTHON) -m benchmarks.gpu.kit

build-wheel: $(READY) ## the wheel, in dist/
	$(PYTHON) -m build --wheel --no-isolation

clean: ## remove caches and outputs; .venv stays
	rm -rf .lint .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist demo_out
	find . -path ./$(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +

# torch comes first and by its exact pin, so that a CPU build that pip can find on the disk is taken: a range would fetch gigabytes.
# A CUDA build of torch pins its own NVRTC, runtime and headers; where it is installed its pins rule.
$(VENV)/.installed: pyproject.toml constraints.txt
	@python3 -c 'import sys; sys.exit(f"python3 must be 3.11 or later, got {sys.version.split()[0]}" if sys.version_info < (3, 11) else 0)'
	@echo "installing what is needed in $(VENV): minutes the first time"
	test -x $(VENV)/bin/pip || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch hatchling
	@if $(VENV)/bin/python -m pip show --quiet cuda-toolkit 2>/dev/null; then grep -vE '^nvidia-cuda-(nvrtc|runtime|cccl)=' constraints.txt; else cat constraints.txt; fi > $(VENV)/constraints.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt --no-build-isolation -e '.[all]'
	@touch $@
