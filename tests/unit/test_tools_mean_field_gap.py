"""The mean-field gap as a command: teacher alone, and a finished student beside the teacher that it was distilled from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from ranks import SIZES
from stage_parts import BACKBONE, lively, record, report_data, write_checkpoint

from echo_pl.backbone.vlm import VLM
from echo_pl.config.compose import compose_config
from echo_pl.distill.gap import last_steps, measure, students_by_block_size, table
from echo_pl.io.run_folders import RunInfo, now_text, write_info

pytestmark = pytest.mark.slow

STUDIES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_data) -> Path:
    folder = tmp_path_factory.mktemp("gap")
    (folder / "data").symlink_to(small_data)
    write_checkpoint(folder / "rad.ckpt", model(folder, seed=8), about(folder, "rad"))
    return folder


def model(folder: Path, seed: int) -> VLM:
    data = report_data(folder / "data" / "synthetic")
    return lively(replace(BACKBONE, seed=seed).build(data.special, data.vocab_size), data.special, eos_scale=2.0)


def about(folder: Path, stage: str, **changes):
    return record(stage, vocabulary=report_data(folder / "data" / "synthetic").vocabulary_fingerprint, **changes)


def config(folder: Path, *overrides: str) -> DictConfig:
    places = [f"data_root={folder / 'data'}", f"outputs={folder}", "min_free_gb=0", "threads=1"]
    return compose_config(["stage=dcd", "stage.module.decode.denoising_steps=4", *places, *SIZES, *overrides])


def test_a_teacher_alone_and_a_student_beside_its_own_teacher(folder):
    alone = measure(config(folder, f"start={folder / 'rad.ckpt'}"), STUDIES)
    assert (alone.block_size, alone.studies, alone.student, alone.student_gap) == (8, STUDIES, None, None)
    assert 0 < alone.usable <= STUDIES
    assert 1 < alone.teacher_forwards <= 4
    run = folder / "runs" / "dcd"
    (run / "checkpoints").mkdir(parents=True)
    info = RunInfo(
        stage="dcd", backbone="TinyBackbone", block_size=8, data="synthetic", status="finished", time=now_text(), start=None,
        chain="", mlflow_run_id=None,
    )  # fmt: skip
    write_info(run, info)
    start = str(folder / "rad.ckpt")
    write_checkpoint(
        run / "checkpoints" / "final.ckpt", model(folder, seed=3), about(folder, "dcd", start=start, start_stage="rad")
    )
    both = measure(config(folder), STUDIES)
    assert both.teacher == start
    assert (both.teacher_gap, both.blocks) == (alone.teacher_gap, alone.blocks)
    assert both.student_gap != both.teacher_gap
    lines = table([alone, both]).markdown().splitlines()
    assert " | - | - | " in lines[2]
    assert lines[2].endswith(" | - |")
    assert lines[3].endswith("| dcd |")
    other = folder / "older.ckpt"
    write_checkpoint(other, model(folder, seed=4), about(folder, "dcd", start=start, start_stage="rad"))
    named = measure(config(folder), STUDIES, students_by_block_size([other])[8])
    assert (named.student, named.teacher_gap) == (str(other), alone.teacher_gap)
    assert named.student_gap not in (both.student_gap, alone.teacher_gap)
    with pytest.raises(ValueError, match="both have blocks of 8"):
        students_by_block_size([other, run / "checkpoints" / "final.ckpt"])
    with pytest.raises(ValueError, match=r"rad\.ckpt is of stage rad, and no student"):
        students_by_block_size([folder / "rad.ckpt"])
    assert f"{both.student_gap:.3f} | {both.student_gap / 8:.3f} |" in lines[3]


def test_steps_of_a_block_behind_a_context_tail():
    assert last_steps(torch.tensor([2, 1, 3, 1, 1, 2, 1, 1, 4, 1]), 4).tolist() == [4, 3, 2]
