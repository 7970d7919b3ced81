"""Runs that start where they usually do not: larger blocks, the student as the next teacher, its own prefixes; on record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import SIZES, SMALL, pretrained_checkpoint

from echo_pl.backbone.checkpoint import RECORD_KEY, read_checkpoint, record_dict
from echo_pl.config.compose import compose_config
from echo_pl.runs.baseline import ancestor
from echo_pl.runs.run import RunOutcome, run

pytestmark = pytest.mark.slow

SHORT = ["stage.max_steps=2", "stage.validate_every=2", "stage.checkpoint_every=1", "stage.batch_size=4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_data) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    (folder / "data").symlink_to(tiny_data)
    pretrained_checkpoint(folder / "data", folder)
    return folder


def start_run(root: Path, *overrides: str) -> RunOutcome:
    return run(compose_config([*SMALL, *SHORT, *SIZES, f"data_root={root / 'data'}", f"outputs={root}", *overrides]))


def test_blocks_grow_and_students_teach(root):
    small = start_run(root, "stage=rad", "block_size=4", f"start={root / 'pretrain.ckpt'}")
    base = start_run(root, "stage=rad", "ablation=grow")
    assert read_checkpoint(base.checkpoint)[0].start_block_size == 4
    assert read_checkpoint(base.checkpoint)[0].start == str(small.checkpoint)
    first = start_run(root, "stage=dcd", "block_size=8")
    second = start_run(root, "stage=dcd", "block_size=8", "ablation=next_round")
    record = read_checkpoint(second.checkpoint)[0]
    assert (record.start, record.start_stage, record.distillation_round) == (str(first.checkpoint), "dcd", 2)
    assert ancestor(record.start, read_checkpoint(first.checkpoint)[0], "pretrain") == str(root / "pretrain.ckpt")
    # It can be validated and resumed without repeating the options that allowed it.
    validated = start_run(root, "stage=dcd", "block_size=8", "task=validate", f"resume={second.checkpoint}")
    assert validated.metrics["val/loss"] == pytest.approx(second.metrics["val/loss"], rel=1e-4)
    last = second.folder / "checkpoints" / "last.ckpt"
    longer = start_run(root, "stage=dcd", "block_size=8", f"resume={last}", "stage.max_steps=3")
    assert read_checkpoint(longer.checkpoint)[0].distillation_round == 2


def read_as_stage_2(root: Path) -> Path:
    """Stage-1 weights with the record of stage 2; their reports end at once, so that every trajectory is usable."""
    about, content = read_checkpoint(root / "pretrain.ckpt")
    content[RECORD_KEY] = record_dict(replace(about, stage="rad", block_size=8))
    torch.save(content, root / "rad.ckpt")
    return root / "rad.ckpt"


def test_prefixes_of_the_student_and_a_gate_in_a_run(root):
    start = read_as_stage_2(root)
    steps = "stage.module.decode.denoising_steps=3"
    prefixed = ["ablation=student_prefix", "stage.module.student_prefix=1.0", "stage.batch_size=12", "data.limit_train=12"]
    mixed = start_run(root, "stage=dcd", f"start={start}", steps, *prefixed)
    # What prefixes do: tests/numerics/test_student_prefix.py. Here reports are too short for one.
    assert mixed.metrics["train/student_prefix_tokens"] == 0.0
    gated = start_run(root, "stage=dcd", f"start={start}", steps, "stage.module.student.gate=1.0")
    assert 1.0 < gated.metrics["speed/forwards_per_block"] <= 2.0
    plain = start_run(root, "stage=dcd", f"start={start}", steps)
    assert plain.metrics["speed/forwards_per_block"] == 1.0
    assert gated.metrics["train/loss"] == plain.metrics["train/loss"], "validation alone"
    assert {"val/mean_field_gap", "val/mean_field_gap_teacher"} <= plain.metrics.keys()
