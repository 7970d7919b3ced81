"""The plan of a run, and starts that need an option: larger blocks, another round of distillation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from models import SPECIAL, TEXT, VOCABULARY
from omegaconf import DictConfig
from stage_parts import BACKBONE, DECODE, dcd, record, write_checkpoint

from echo_pl.backbone.checkpoint import StageRecord, read_checkpoint
from echo_pl.backbone.vlm import VLM
from echo_pl.config.compose import compose_config
from echo_pl.io.run_folders import RunInfo, now_text, write_info
from echo_pl.runs.lineage import make_lineage
from echo_pl.runs.plan import make_plan
from echo_pl.runs.start import read_start


@dataclass(frozen=True)
class Data:
    """Properties of the data that a checkpoint must match."""

    fingerprint: str = "f00d"
    vocabulary_fingerprint: str = "cafe"


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return replace(BACKBONE, seed=9).build(SPECIAL, VOCABULARY)


def config(outputs: Path, *overrides: str) -> DictConfig:
    return compose_config([f"outputs={outputs}", "data_root=nowhere", *overrides])


def lineage(config: DictConfig) -> StageRecord:
    return make_lineage(config, Data(), read_start(config), "chain")


@pytest.mark.parametrize("stage", ["rad", "dcd"])
def test_other_blocks_are_rejected_with_the_option_that_allows_them(tmp_path, vlm, stage):
    path = write_checkpoint(tmp_path / "rad.ckpt", vlm, record("rad", block_size=4))
    with pytest.raises(ValueError, match=r"trained with block_size 4, this run has 8; give block_size=4, or start_block_size=4 to"):
        read_start(config(tmp_path, f"stage={stage}", "block_size=8", f"start={path}"))
    grown = lineage(config(tmp_path, f"stage={stage}", "block_size=8", f"start={path}", "start_block_size=4"))
    assert (grown.block_size, grown.start_block_size, grown.start_stage) == (8, 4, "rad")
    same = lineage(config(tmp_path, f"stage={stage}", "block_size=4", f"start={path}"))
    assert (same.block_size, same.start_block_size) == (4, None)
    with pytest.raises(ValueError, match="trained with block_size 4, this run has 16"):
        read_start(config(tmp_path, f"stage={stage}", "block_size=8", f"start={path}", "start_block_size=16"))


def test_a_stage_1_checkpoint_has_no_blocks_to_grow_from(tmp_path, vlm):
    path = write_checkpoint(tmp_path / "ar.ckpt", vlm, record("pretrain", block_size=None))
    found = lineage(config(tmp_path, "stage=rad", "block_size=8", f"start={path}"))
    assert (found.start_stage, found.start_block_size, found.distillation_round) == ("pretrain", None, None)
    with pytest.raises(ValueError, match=r"ar.ckpt is a checkpoint of stage 'pretrain', which has no blocks .* start_stage=rad"):
        lineage(config(tmp_path, "stage=rad", "block_size=8", f"start={path}", "start_block_size=4"))


def test_a_student_teaches_only_when_asked_and_rounds_are_counted(tmp_path, vlm):
    base = write_checkpoint(tmp_path / "rad.ckpt", vlm, record("rad"))
    first = lineage(config(tmp_path, "stage=dcd", f"start={base}"))
    assert (first.start_stage, first.distillation_round) == ("rad", 1)
    student = write_checkpoint(tmp_path / "dcd.ckpt", vlm, first)
    with pytest.raises(ValueError, match=r"dcd.ckpt is a checkpoint of stage 'dcd', a student: give start_stage=dcd to make it"):
        read_start(config(tmp_path, "stage=dcd", f"start={student}"))
    second = lineage(config(tmp_path, "stage=dcd", f"start={student}", "start_stage=dcd"))
    assert (second.start_stage, second.distillation_round) == ("dcd", 2)
    third = write_checkpoint(tmp_path / "dcd2.ckpt", vlm, second)
    assert lineage(config(tmp_path, "stage=dcd", f"start={third}", "start_stage=dcd")).distillation_round == 3
    of_before = write_checkpoint(tmp_path / "old.ckpt", vlm, record("dcd"))  # of a time when nobody counted
    assert lineage(config(tmp_path, "stage=dcd", f"start={of_before}", "start_stage=dcd")).distillation_round == 2


def test_asked_for_a_student_another_stage_is_rejected(tmp_path, vlm):
    base = write_checkpoint(tmp_path / "rad.ckpt", vlm, record("rad"))
    with pytest.raises(ValueError, match=r"rad.ckpt is a checkpoint of stage 'rad', needed is one of 'dcd'"):
        read_start(config(tmp_path, "stage=dcd", f"start={base}", "start_stage=dcd"))


@pytest.mark.parametrize(
    ("stage", "start_stage", "possible"),
    [("rad", "dcd", "pretrain or rad"), ("dcd", "pretrain", "rad or dcd"), ("pretrain", "rad", "warmup or pretrain")],
)
def test_a_start_stage_that_makes_no_sense_is_rejected(tmp_path, vlm, stage, start_stage, possible):
    path = write_checkpoint(tmp_path / "some.ckpt", vlm, record(start_stage))
    with pytest.raises(ValueError, match=f"stage {stage} starts from {possible}, got start_stage={start_stage}"):
        read_start(config(tmp_path, f"stage={stage}", f"start={path}", f"start_stage={start_stage}"))


def finished(outputs: Path, vlm: VLM, name: str, stage: str, block_size: int) -> Path:
    folder = outputs / "runs" / name
    (folder / "checkpoints").mkdir(parents=True)
    info = RunInfo(
        stage=stage, backbone="TinyBackbone", block_size=block_size, data="synthetic", status="finished", time=now_text(),
        start=None, chain="", mlflow_run_id=None,
    )  # fmt: skip
    write_info(folder, info)
    return write_checkpoint(folder / "checkpoints" / "final.ckpt", vlm, record(stage, block_size=block_size))


def test_the_newest_fitting_run_is_found_for_these_starts_too(tmp_path, vlm):
    small = finished(tmp_path, vlm, "rad-4", "rad", 4)
    base = finished(tmp_path, vlm, "rad-8", "rad", 8)
    student = finished(tmp_path, vlm, "dcd-8", "dcd", 8)

    def found(*overrides: str) -> Path | None:
        return read_start(config(tmp_path, "block_size=8", *overrides)).path

    assert found("stage=dcd") == base
    assert found("stage=dcd", "ablation=next_round") == student
    assert found("stage=dcd", "start_block_size=4") == small
    assert found("stage=rad", "ablation=grow") == small
    with pytest.raises(FileNotFoundError, match=r"finished run of stage dcd .* run `echo-pl stage=dcd block_size=16` first"):
        read_start(config(tmp_path, "stage=dcd", "start_stage=dcd", "block_size=16"))


def test_a_resumed_run_keeps_the_start_that_it_was_allowed(tmp_path, vlm):
    student = write_checkpoint(tmp_path / "dcd.ckpt", vlm, record("dcd", block_size=4))
    asked = config(tmp_path, "stage=dcd", "block_size=8", f"start={student}", "start_stage=dcd", "start_block_size=4")
    resume = write_checkpoint(tmp_path / "last.ckpt", vlm, lineage(asked))
    again = config(tmp_path, "stage=dcd", "block_size=8")
    again.resume = str(resume)
    assert make_plan(again).start.path == student
    again.start = str(student)
    assert make_lineage(again, Data(), make_plan(again).start, "chain") == read_checkpoint(resume)[0]


def test_stage_3_builds_what_its_lineage_says(tmp_path, vlm):
    student = write_checkpoint(tmp_path / "dcd.ckpt", vlm, record("dcd", block_size=4))
    about = record("dcd", start=str(student), start_stage="dcd", start_block_size=4, distillation_round=2)
    module = dcd(TEXT, student, lineage=about, decode=DECODE)
    module.configure_model()
    assert module.teacher.state_dict().keys() == vlm.state_dict().keys()
    plain = dcd(TEXT, student, decode=DECODE)
    with pytest.raises(ValueError, match="a checkpoint of stage 'dcd', needed is one of 'rad'"):
        plain.configure_model()
