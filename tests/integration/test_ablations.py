"""Ablations: every file composes and builds its objective; one of each kind trains a step, at the smallest size."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from ranks import SIZES, SMALL, pretrained_checkpoint

from echo_pl.backbone.checkpoint import RECORD_KEY, read_checkpoint, record_dict
from echo_pl.config.compose import EXPERIMENTS, compose_config
from echo_pl.config.keys import check_keys
from echo_pl.distill.collect_trajectories import collect_trajectories
from echo_pl.runs.run import run

pytestmark = pytest.mark.slow

NAMES = sorted(path.stem for path in (EXPERIMENTS / "ablation").glob("*.yaml"))
TRAINED = ("d3llm", "ddo", "grow", "next_round", "sdtt", "tilted_bigrams")
"""One of each kind: trajectory masks, a reference model, larger blocks, a student as teacher, a random order, pair counts."""
OF_STAGE_2 = {"grow": ["start_block_size=4"], "rad_scale": []}
STORED = ("bigrams", "tilted_bigrams")
"""Those that count something in stored trajectories."""
ONE_STEP = [
    "stage.max_steps=1", "stage.batch_size=12", "stage.checkpoint_every=9", "stage.module.optimization.warmup_steps=0",
    "trainer.log_every_n_steps=1", "+trainer.limit_val_batches=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_data) -> Path:
    """A corpus, and one model's weights as checkpoints of stages 1 to 3; its reports end at once, so trajectories are usable."""
    folder = tmp_path_factory.mktemp("ablations")
    (folder / "data").symlink_to(tiny_data)
    pretrained_checkpoint(folder / "data", folder)
    about, content = read_checkpoint(folder / "pretrain.ckpt")
    for name, stage, size in (("rad4", "rad", 4), ("rad", "rad", 8), ("dcd", "dcd", 8)):
        torch.save({**content, RECORD_KEY: record_dict(replace(about, stage=stage, block_size=size))}, folder / f"{name}.ckpt")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_ablation_builds_its_objective_and_teacher(name):
    """Keys and values that a class rejects show here; the losses are in tests/numerics."""
    config = compose_config([f"stage={'rad' if name in OF_STAGE_2 else 'dcd'}", f"ablation={name}"])
    check_keys(config)
    for node in ("objective", "decode", "noise", "student"):
        if config.stage.module.get(node) is not None:
            assert instantiate(config.stage.module[node], _convert_="all") is not None


@pytest.mark.parametrize("name", TRAINED)
def test_one_of_each_kind_trains(root, name):
    stage = "rad" if name in OF_STAGE_2 else "dcd"
    start = {"grow": "rad4", "rad_scale": "pretrain", "next_round": "dcd"}.get(name, "rad")
    steps = [] if stage == "rad" or name == "sdtt" else ["stage.module.decode.denoising_steps=3"]
    settings = [
        *SMALL, *SIZES, *ONE_STEP, f"data_root={root / 'data'}", f"outputs={root}", f"run_name={name}", f"stage={stage}",
        f"ablation={name}", f"start={root / start}.ckpt", *steps, *OF_STAGE_2.get(name, []),
    ]  # fmt: skip
    if name in STORED:
        with pytest.raises(ValueError, match=r"give stage.module.trajectories=<folder>"):
            run(compose_config(settings))
        store = root / f"stored-{name}"
        collect_trajectories(compose_config([*settings, "stage.limit_train=12"]), store)
        settings += [f"stage.module.trajectories={store}", "stage.limit_train=12"]
    outcome = run(compose_config(settings))
    assert math.isfinite(outcome.metrics["train/loss"])
    assert outcome.metrics.get("train/usable_trajectories", 1.0) > 0
    before, after = (read_checkpoint(path)[1]["state_dict"] for path in (root / f"{start}.ckpt", outcome.checkpoint))
    assert any(not torch.equal(before[key], after[key]) for key in before), "nothing was trained"
