"""On-policy prefixes in stage 3: the student begins a report, the teacher completes it; only what the teacher chose is learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import SPECIAL, TEXT, decoding_vlm, make_batch, rows_of, small_vlm
from stage_parts import dcd

from echo_pl.diffusion.objectives import DirectConditional, NestedConsistency, SequenceLevel, TrajectoryOrder
from echo_pl.sampling import BlockSampler, DecodeConfig, TrajectoryRecorder
from echo_pl.sampling.forced_prefix import ForcedPrefix
from echo_pl.stages.dcd import DCDModule
from echo_pl.stages.distillation import align
from echo_pl.structs import Batch

L, LIMIT = 4, 20
CONTEXTS = [9, 12, 11, 14]


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch(CONTEXTS, [10, 7, 5, 6], seed=3, dtype=torch.float64)


def stage(share: float, grid: str = "response", **options) -> DCDModule:
    config = DecodeConfig(block_size=L, max_response_tokens=LIMIT, confidence_threshold=0.5, grid=grid)
    module = dcd(TEXT, Path("teacher.ckpt"), decode=config, student_prefix=share, **options)
    module.vlm = small_vlm(torch.float64, seed=5, sharp=8.0)
    object.__setattr__(module, "teacher", decoding_vlm().requires_grad_(False))
    return module


def one_step(module: DCDModule, batch: Batch) -> list[list[int]]:
    recorder = TrajectoryRecorder()
    module.sampler.generate(batch, recorder)
    return [t.token_R.tolist() for t in recorder.trajectories(batch.keys)]


@pytest.mark.parametrize("grid", ["response", "absolute"])
def test_the_student_begins_and_the_teacher_completes(batch, grid):
    module = stage(1.0, grid)
    found = module.collect(batch)
    written = one_step(module, batch)
    used = 0
    for row, trajectory in enumerate(found):
        if trajectory is None:
            continue
        begun = trajectory.token_R[trajectory.commit_step_R == 0]
        tail = CONTEXTS[row] % L if grid == "absolute" else 0
        blocks, rest = divmod(len(begun) + (tail if len(begun) else 0), L)
        assert rest == 0
        assert begun.tolist() == written[row][: len(begun)]
        recorder = TrajectoryRecorder(distributions=True)
        BlockSampler(module.teacher, SPECIAL, module.decode).generate(
            rows_of(batch, row), recorder, prefix=ForcedPrefix.of([begun], [blocks])
        )
        (alone,) = recorder.trajectories(["alone"])
        assert trajectory.token_R[len(begun) :].tolist() == alone.token_R.tolist()
        assert float((trajectory.target_RV[len(begun) :] - alone.target_RV).abs().max()) < 1e-10
        used += blocks
    assert used > 1, "the example must have prefixes"


@pytest.mark.parametrize("grid", ["response", "absolute"])
def test_the_student_s_prefix_is_context_and_not_supervised(batch, grid):
    module = stage(1.0, grid)
    found = module.collect(batch)
    blocked = module.phase_2.blocked(batch, found)
    labels = align(found, blocked, with_targets=True)
    for row, trajectory in enumerate(found):
        tail = CONTEXTS[row] % L if grid == "absolute" else 0
        own = [] if trajectory is None else (trajectory.commit_step_R > 0).tolist()
        supervised = labels.supervised_BR[row, tail : tail + len(own)].tolist()
        assert supervised == own
        assert int(labels.supervised_BR[row].sum()) == sum(own)
        if trajectory is not None:
            assert blocked.clean_ids_BR[row, tail : tail + len(own)].tolist() == trajectory.token_R.tolist()
            chosen = labels.supervised_BR[row].nonzero()[:, 0]
            assert torch.allclose(labels.target_BRV[row, chosen].sum(-1), torch.ones(len(chosen)))


@pytest.mark.parametrize(
    "objective", [DirectConditional(), SequenceLevel(), NestedConsistency(), TrajectoryOrder()], ids=lambda o: o.name
)
def test_every_objective_takes_prefixes(batch, objective):
    module = stage(1.0, objective=objective)
    loss, _ = module.loss(batch, module.collect(batch), epoch=0, progress=0.5)
    loss.backward()
    assert torch.isfinite(loss)
    assert any(bool(p.grad is not None and p.grad.abs().sum() > 0) for p in module.model.parameters())
    assert all(p.grad is None for p in module.teacher.parameters())


def test_a_study_has_the_same_prefix_in_any_batch_and_the_random_state_is_unchanged(batch):
    module = stage(0.7)
    before = torch.get_rng_state()
    together = module.collect(batch)
    assert torch.equal(torch.get_rng_state(), before)
    for row in range(len(batch)):
        (alone,) = module.collect(rows_of(batch, row))
        one = together[row]
        assert (one is None) == (alone is None)
        if one is not None:
            assert torch.equal(one.token_R, alone.token_R)
            assert torch.equal(one.commit_step_R, alone.commit_step_R)


def test_without_a_prefix_nothing_changes(batch):
    module = stage(0.0)
    recorder = TrajectoryRecorder(distributions=True)
    result = BlockSampler(module.teacher, SPECIAL, module.decode).generate(batch, recorder)
    for found, plain, stopped in zip(module.collect(batch), recorder.trajectories(batch.keys), result.stopped_B, strict=True):
        assert (found is not None) == bool(stopped)
        if found is not None:
            assert torch.equal(found.token_R, plain.token_R)
            assert torch.equal(found.target_RV, plain.target_RV)
            assert int(found.commit_step_R.min()) == 1


def test_invalid_shares_and_stored_trajectories_raise():
    with pytest.raises(ValueError, match=r"student_prefix must be in \[0, 1\], got 1.5"):
        stage(1.5)
    with pytest.raises(ValueError, match=r"student_prefix follows the student as it learns: .* leave trajectories unset"):
        stage(0.5, trajectories="somewhere")
