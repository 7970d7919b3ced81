# echo_pl: every target makes the environment that it needs. `make help` lists them; everything else is a command: `echo-pl --help`.
# ARGS="block_size=4 ..." reaches the configuration of a run; experiments/config.yaml has the keys.
PYTHON      ?= python3
VENV        ?= .venv
TORCH       ?= torch==2.13.0
CONSTRAINTS ?= constraints.txt
WORKERS     ?= 2
ARGS        ?=
REAL_DATA   ?= ../shared/data/nih_64
BIN         := $(VENV)/bin
PIP         := $(BIN)/pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
READY       := $(VENV)/.ready
DEV         := $(VENV)/.ready-dev
DATA        := outputs/data/synthetic/index.json

.DEFAULT_GOAL := help
.PHONY: help install demo demo-full demo-real stage1 stage2 stage3 test test-quick test-slurm lint docs mlflow clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(DEV) ## create the environment: torch for the CPU, the package (editable), what tests need, at tested versions

$(READY): pyproject.toml setup.py $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)'
	$(PIP) -e .
	touch $@

$(DEV): $(READY)
	$(PIP) -e '.[dev]'
	touch $@

demo: $(READY) ## the whole method in about a quarter of an hour: corpus, stages, table, page -> outputs/demo (ARGS="block_size=4")
	$(BIN)/echo-pl demo $(ARGS)

demo-full: $(READY) ## the same with longer training and 304 held-out studies -> outputs/demo-full (half an hour)
	$(BIN)/echo-pl demo --full $(ARGS)

demo-real: $(READY) ## the same on real X-rays in REAL_DATA=<folder> -> outputs/demo-real
	$(BIN)/echo-pl demo --full --data nih --source $(REAL_DATA) $(ARGS)

$(DATA): $(READY)
	$(BIN)/echo-pl corpus make --out outputs/data/synthetic

stage1: $(DATA) ## stage 1, NormalizedPretrain; warms the vision tower up first (ARGS="stage.max_steps=2000")
	$(BIN)/echo-pl train --with-warmup stage=pretrain $(ARGS)

stage2: $(DATA) ## stage 2, RADModule, from the newest stage 1 (ARGS="block_size=8")
	$(BIN)/echo-pl train stage=rad $(ARGS)

stage3: $(DATA) ## stage 3, DCDModule, from the newest stage 2 (ARGS="block_size=8 ablation=ce")
	$(BIN)/echo-pl train stage=dcd $(ARGS)

test: $(DEV) ## all tests, in WORKERS=2 processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-quick: $(DEV) ## the tests that take no training: under 90 seconds
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m 'not slow'

test-slurm: $(DEV) ## batch jobs on two emulated SLURM nodes (installs Debian's slurm; needs root; about 8 minutes)
	$(PIP) -e '.[slurm]'
	$(BIN)/python -m pytest -v tests/slurm/check_cluster.py

lint: docs ## ruff, mypy, and the documentation with its links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DEV) ## the documentation as a site -> outputs/site/index.html
	$(BIN)/mkdocs build --strict --quiet

mlflow: $(READY) ## browse the runs at http://127.0.0.1:5000 (MLFLOW_DB=outputs/demo/mlflow.db for the demo's)
	$(BIN)/echo-pl mlflow ui $(if $(MLFLOW_DB),--database $(MLFLOW_DB))

clean: ## remove environment, outputs and caches
	rm -rf $(VENV) outputs multirun build site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
