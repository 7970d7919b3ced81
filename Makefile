# echo_pl: every target makes the environment it needs. `make help` lists them.
# ARGS="block_size=4 ..." reaches the configuration of a run; see experiments/config.yaml for the keys.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
ARGS   ?=
WORKERS ?= 2
BLOCKS ?= 4,8,16,32
STEPS  ?= 400
REAL_DATA ?= ../shared/data/nih_64
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev
DATA   := outputs/data/synthetic/index.json

.DEFAULT_GOAL := help
.PHONY: help install demo demo-real data warmup stage1 stage2 stage3 sweep lab trials compare bench bench-rad bench-data bench-copies prepare view features test test-slurm lint mlflow clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(DEV) ## create the environment: torch for the CPU first, then the package, editable, and what tests need

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet -e .
	touch $@

$(DEV): $(READY)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

demo: $(READY) ## the whole story: corpus, three stages, held-out table -> outputs/demo (ARGS="block_size=4")
	$(BIN)/python -m echo_pl.sweeps.demo $(ARGS)

demo-real: $(READY) ## the same on real X-rays in REAL_DATA=<folder> -> outputs/demo-real
	$(BIN)/python -m echo_pl.sweeps.demo --data nih --source $(REAL_DATA) $(ARGS)

data: $(DATA) ## make the synthetic corpus in outputs/data

$(DATA): $(READY)
	$(BIN)/python -m echo_pl.data.pipeline.make_corpus synthetic --out outputs/data/synthetic

warmup: $(DATA) ## warm the tiny vision tower up on finding labels (before stage 1)
	$(BIN)/echo-pl stage=warmup $(ARGS)

stage1: $(DATA) ## stage 1, NormalizedPretrain (ARGS="stage.max_steps=2000 ..."); warms up first if nothing has
	$(BIN)/python -m echo_pl.cli.warmup_once $(ARGS)
	$(BIN)/echo-pl stage=pretrain $(ARGS)

stage2: $(DATA) ## stage 2, RADModule, from the newest stage 1 (ARGS="block_size=8")
	$(BIN)/echo-pl stage=rad $(ARGS)

stage3: $(DATA) ## stage 3, DCDModule, from the newest stage 2 (ARGS="block_size=8 ablation=ce")
	$(BIN)/echo-pl stage=dcd $(ARGS)

sweep: $(DATA) ## block sizes x objectives x seeds with all they need; goes on where it was cut off (ARGS="block_size=4,8 seed=0,1")
	$(BIN)/echo-pl -m sweep=lab $(ARGS)

LAB := seed=0,1,2 'sweep.grow=[4,8,16]' +sweep.stages.rad.max_steps=1200 +sweep.stages.grown.max_steps=450 \
	+sweep.stages.grown.module.optimization.learning_rate=1.0e-3 stage.max_steps=$(STEPS) sweep.studies=1000 sweep.timed_studies=32
TRIALS ?= dcd,ce,tilted,tilted_bigrams,plain_kl,no_eos,reverse_kl,raw,kl_ce,sharp,dparallel,d3llm,ddo,dscd,sdtt

lab: SWEEP = lab
lab: $(DATA) ## what docs/lab/objectives.md starts with: dcd, ce and tilted by block size, over three seeds (hours; BLOCKS=8; SWEEP=name STEPS=900 beside it) -> outputs/compare
	$(BIN)/echo-pl -m sweep=lab sweep.name=$(SWEEP) block_size=$(BLOCKS) ablation=dcd,ce,tilted $(LAB) $(ARGS)
	$(BIN)/echo-pl compare --sweep $(SWEEP)

trials: SWEEP = trials
trials: $(DATA) ## and what it goes on with: every objective and trial, blocks of 8 (hours; TRIALS=dcd,sharp) -> outputs/compare
	$(BIN)/echo-pl -m sweep=lab sweep.name=$(SWEEP) block_size=8 ablation=$(TRIALS) $(LAB) $(ARGS)
	$(BIN)/echo-pl compare --sweep $(SWEEP)

compare: $(READY) ## quality against speed of a sweep, from MLflow -> outputs/compare (ARGS="--sweep lab")
	$(BIN)/echo-pl compare $(ARGS)

bench: $(READY) ## time every way of decoding on this machine -> outputs/bench (ARGS="models=[tiny] contexts=[300]")
	$(BIN)/python -m echo_pl.bench.decode_report $(ARGS)

bench-rad: $(READY) ## time a training step in every layout -> outputs/bench (ARGS="models=[d128] contexts=[256]")
	$(BIN)/python -m echo_pl.bench.rad_report $(ARGS)

bench-data: $(READY) ## time reading, decoding and batches, from a folder and over HTTP -> outputs/bench (ARGS="--rounds 9")
	$(BIN)/python -m echo_pl.bench.data $(ARGS)

bench-copies: $(DATA) ## K noisy copies at equal training time -> outputs/bench/copies (from the newest stage 1; 20 minutes)
	$(BIN)/python -m echo_pl.bench.copies $(if $(ARGS),--set $(ARGS))

prepare: $(READY) ## a dataset's files to shards (ARGS="--reader iu_openi --source <folder> --out outputs/data/iu"; exit status 3: see the card)
	$(BIN)/echo-pl prepare $(ARGS)

view: $(READY) ## the studies of a shard as a page (ARGS="outputs/data/iu/train-000000.tar --out look.html")
	$(BIN)/echo-pl view $(ARGS)

features: $(DATA) ## store the frozen vision tower's output -> outputs/features/synthetic, for data.stored_features=
	$(BIN)/python -m echo_pl.runs.stored_features --out outputs/features/synthetic $(ARGS)

test: $(DEV) ## run the tests, in WORKERS=2 processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slurm: $(DEV) ## batch jobs on two emulated SLURM nodes (installs Debian's slurm; needs root; about 8 minutes)
	$(BIN)/pip install --quiet -e '.[slurm]'
	$(BIN)/python -m pytest -v tests/slurm/check_cluster.py

lint: $(DEV) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mlflow: $(READY) ## browse the runs at http://127.0.0.1:5000 (MLFLOW_DB=outputs/demo/mlflow.db for the demo's)
	$(BIN)/mlflow server --backend-store-uri sqlite:///$(abspath $(or $(MLFLOW_DB),outputs/mlflow.db)) --host 127.0.0.1 --port 5000

clean: ## remove environment, outputs and caches
	rm -rf $(VENV) outputs multirun build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
