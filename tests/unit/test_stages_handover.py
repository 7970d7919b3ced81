"""From stage to stage: every weight arrives, the teacher stays outside, the vision tower is frozen where it should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import SPECIAL, VOCABULARY
from stage_parts import BACKBONE, DECODE, OPTIMIZATION, dcd, pretrain, rad, record, warmup, write_checkpoint

from echo_pl.backbone.checkpoint import read_checkpoint
from echo_pl.backbone.vlm import VLM, weights_fingerprint
from echo_pl.diffusion.objectives import SequenceLevel
from echo_pl.sampling.collect import store_identity
from echo_pl.sampling.trajectory_store import CollectionPlan
from echo_pl.sampling.trajectory_writer import TrajectoryWriter
from echo_pl.stages.validation import TextTools
from echo_pl.structs import ReportText

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text() -> TextTools:
    return TextTools(
        special=SPECIAL,
        vocab_size=VOCABULARY,
        labels=("effusion", "nodule"),
        to_report=lambda tokens: ReportText(findings="", impression=""),
        judge=None,
        fingerprint="f00d",
    )


@pytest.fixture(scope="module")
def trained() -> VLM:
    """Weights that are not those a stage would build by itself."""
    return replace(BACKBONE, seed=9).build(SPECIAL, VOCABULARY)


def checkpoint(tmp_path: Path, trained: VLM, stage: str) -> Path:
    return write_checkpoint(tmp_path / f"{stage}.ckpt", trained, record(stage))


def same(vlm: VLM, other: VLM) -> bool:
    mine, theirs = vlm.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_pretrain_takes_over_the_warm_up(tmp_path, text, trained):
    module = pretrain(text, checkpoint(tmp_path, trained, "warmup"))
    module.configure_model()
    assert same(module.model, trained)


def test_rad_takes_over_pretrain_and_freezes_the_tower(tmp_path, text, trained):
    module = rad(text, checkpoint(tmp_path, trained, "pretrain"))
    module.configure_model()
    assert same(module.model, trained)
    assert {n for n, p in module.named_parameters() if not p.requires_grad} == {
        n for n, _ in module.named_parameters() if ".visual." in n
    }


def test_dcd_makes_teacher_and_student_of_the_rad_checkpoint(tmp_path, text, trained):
    module = dcd(text, checkpoint(tmp_path, trained, "rad"))
    module.configure_model()
    assert same(module.model, trained)
    assert same(module.teacher, trained)
    shared = {p.data_ptr() for p in module.teacher.parameters()} & {p.data_ptr() for p in module.model.parameters()}
    assert not shared, "the student must not train the teacher"
    assert not any(p.requires_grad for p in module.teacher.parameters())
    assert not module.teacher.training
    module.train()
    assert not module.teacher.training, "train() of the stage does not reach the teacher"


def test_the_teacher_is_in_no_state_dict_and_no_optimizer(tmp_path, text, trained):
    module = dcd(text, checkpoint(tmp_path, trained, "rad"))
    module.configure_model()
    assert {name.split(".")[0] for name in module.state_dict()} == {"vlm"}
    assert len(module.state_dict()) == len(trained.state_dict())
    optimizer = OPTIMIZATION.configure(module, 10)["optimizer"]
    in_optimizer = {p.data_ptr() for group in optimizer.param_groups for p in group["params"]}
    assert in_optimizer == {p.data_ptr() for p in module.model.parameters() if p.requires_grad}
    assert not in_optimizer & {p.data_ptr() for p in module.teacher.parameters()}


def test_configuring_twice_builds_once(tmp_path, text, trained):
    for module in (rad(text, checkpoint(tmp_path, trained, "pretrain")), dcd(text, checkpoint(tmp_path, trained, "rad"))):
        module.configure_model()
        first = module.model
        module.configure_model()
        assert module.model is first


@pytest.mark.parametrize(
    ("make", "wrong", "wanted"),
    [(pretrain, "rad", "'warmup' or 'pretrain'"), (rad, "dcd", "'pretrain' or 'rad'"), (dcd, "pretrain", "'rad'")],
)
def test_a_checkpoint_of_another_stage_raises(tmp_path, text, trained, make, wrong, wanted):
    module = make(text, checkpoint(tmp_path, trained, wrong))
    with pytest.raises(ValueError, match=rf"{wrong}.ckpt is a checkpoint of stage '{wrong}', needed is one of {wanted}"):
        module.configure_model()


def test_dcd_rejects_a_teacher_of_another_block_size(tmp_path, text, trained):
    path = checkpoint(tmp_path, trained, "rad")
    module = dcd(text, path, decode=replace(DECODE, block_size=4))
    with pytest.raises(ValueError, match=r"trained with block_size 8, asked for is 4"):
        module.configure_model()


def test_dcd_rejects_a_teacher_of_another_grid_or_context_attention(tmp_path, text, trained):
    """It would decode blocks that it has never seen."""
    path = checkpoint(tmp_path, trained, "rad")
    for name, value in {"grid": "absolute", "context_attention": "full"}.items():
        module = dcd(text, path, decode=replace(DECODE, **{name: value}))
        with pytest.raises(ValueError, match=rf"rad.ckpt was trained with {name} .*, asked for is '?{value}"):
            module.configure_model()


def test_stages_reject_an_invalid_start(tmp_path, text):
    with pytest.raises(ValueError, match=r"the vision warm-up starts from nothing, got start=x.ckpt"):
        warmup(text, start="x.ckpt")
    with pytest.raises(ValueError, match="needs a corpus with finding labels"):
        warmup(replace(text, labels=()))
    with pytest.raises(ValueError, match="generation_batches must not be negative, got -1"):
        rad(text, generation_batches=-1)


def test_trajectories_of_another_teacher_raise_with_both_names(tmp_path, text, trained):
    path = checkpoint(tmp_path, trained, "rad")
    identity = store_identity(DECODE, "0123456789abcdef", "f00d", distributions=False)
    TrajectoryWriter(tmp_path / "store", identity, CollectionPlan(studies=0, batches=0, batch_size=1)).finish()
    module = dcd(text, path, decode=DECODE, objective=SequenceLevel(), trajectories=str(tmp_path / "store"))
    own = weights_fingerprint(trained)
    with pytest.raises(ValueError, match=rf"teacher_fingerprint '0123456789abcdef', this run needs '{own}'"):
        module.configure_model()


def test_checkpoints_record_their_origin(tmp_path, text, trained):
    path = checkpoint(tmp_path, trained, "rad")
    for module in (pretrain(text), rad(text), dcd(text, path), warmup(text)):
        content: dict = {"state_dict": {}}
        module.on_save_checkpoint(content)
        torch.save(content, tmp_path / "own.ckpt")
        assert read_checkpoint(tmp_path / "own.ckpt")[0] == module.lineage
        assert module.lineage.stage == module.stage_name


def test_the_student_is_validated_at_one_step_with_the_fused_cache(tmp_path, text, trained):
    module = dcd(text, checkpoint(tmp_path, trained, "rad"))
    module.configure_model()
    config = module.sampler.config
    assert (config.denoising_steps, config.kv_cache) == (1, "fused")
    assert module.sampler.vlm is module.model
    assert module.make_sampler(module.teacher).config == module.decode
