"""Objectives in their stage: masked copies and the frozen teacher's rows, on one small model as student and teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from models import SPECIAL, TEXT, VOCABULARY, make_batch, small_vlm
from torch import Tensor

from echo_pl.backbone.checkpoint import StageRecord
from echo_pl.backbone.factory import TinyBackbone
from echo_pl.diffusion.objectives import (
    CertaintyForcing,
    Discriminative,
    NestedConsistency,
    Objective,
    Rows,
    TrajectoryOrder,
)
from echo_pl.sampling import DecodeConfig
from echo_pl.stages.dcd import DCDModule
from echo_pl.stages.optimization import Optimization
from echo_pl.structs import Trajectory

L = 4
BLOCKS = (3, 2)


@dataclass(frozen=True, kw_only=True)
class Watched(NestedConsistency):
    """``dscd`` that keeps the rows it was given."""

    seen: list[Rows] = field(default_factory=list)

    def loss(self, rows: Rows, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append(rows)
        return super().loss(rows, progress)


def make_stage(objective: Objective, monkeypatch: pytest.MonkeyPatch, grid: str = "response") -> DCDModule:
    stage = DCDModule(
        backbone=TinyBackbone(),
        text=TEXT,
        optimization=Optimization(learning_rate=1e-3),
        lineage=StageRecord(stage="dcd", backbone="TinyBackbone"),
        decode=DecodeConfig(block_size=L, max_response_tokens=32, grid=grid),
        objective=objective,
        start="teacher.ckpt",
    )
    stage.vlm = small_vlm()
    object.__setattr__(stage, "teacher", small_vlm().requires_grad_(False))
    monkeypatch.setattr(stage, "_progress", lambda: 0.5)
    return stage


def trajectories(tails: tuple[int, int] = (0, 0)) -> list[Trajectory | None]:
    """Two made-up trajectories; a context tail in the first block leaves less room for the response."""
    found: list[Trajectory | None] = []
    for row, (blocks, tail) in enumerate(zip(BLOCKS, tails, strict=True)):
        generator = torch.Generator().manual_seed(row)
        R = blocks * L - tail
        token = torch.randint(0, 90, (R,), generator=generator)
        token[-1] = SPECIAL.eos
        found.append(
            Trajectory(
                key=f"study-{row}",
                block_size=L,
                token_R=token,
                commit_step_R=torch.randint(1, L + 1, (R,), generator=generator),
                confidence_R=torch.ones(R),
            )
        )
    return found


def test_student_and_reference_are_equal_at_the_start_of_ddo(monkeypatch: pytest.MonkeyPatch):
    """The same weights on the same masked input: both ratios are zero."""
    stage = make_stage(Discriminative(share_min=0.3), monkeypatch)
    loss, parts = stage.loss(make_batch([11, 14], [5, 5]), trajectories(), epoch=0)
    assert parts["real"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert parts["fake"].item() == pytest.approx(math.log(2), abs=1e-6)
    assert loss.item() == pytest.approx(1.5 * math.log(2) + 0.2 * parts["path_ce"].item(), rel=1e-5)


@pytest.mark.parametrize("grid", ["response", "absolute"])
def test_the_teacher_predicts_at_the_student_s_rows(grid: str, monkeypatch: pytest.MonkeyPatch):
    objective = Watched(kl_positions="student")
    stage = make_stage(objective, monkeypatch, grid)
    tails = (11 % L, 14 % L) if grid == "absolute" else (0, 0)
    stage.loss(make_batch([11, 14], [5, 5]), trajectories(tails), epoch=0)
    (rows,) = objective.seen
    assert rows.reference_logits_MV is not None
    assert rows.logits_MV.shape == rows.reference_logits_MV.shape == (len(rows.token_M), VOCABULARY)
    assert rows.logits_MV.requires_grad
    assert not rows.reference_logits_MV.requires_grad
    never = torch.tensor(SPECIAL.never_sampled)
    assert rows.reference_logits_MV[:, never].isneginf().all()
    assert torch.isfinite(rows.logits_MV).all()
    # Every block has rows; the teacher sees some of them masked, not all.
    blocks = set(zip(rows.sample_M.tolist(), rows.block_M.tolist(), strict=True))
    assert blocks == {(row, n) for row in range(2) for n in range(BLOCKS[row])}
    assert rows.reference_masked_M.any()
    assert not rows.reference_masked_M.all()
    assert (rows.commit_step_M > 0).all()


@pytest.mark.parametrize(
    "objective", [CertaintyForcing(), TrajectoryOrder(), NestedConsistency(), Discriminative()], ids=lambda o: o.name
)
def test_a_step_reaches_the_student_and_not_the_teacher(objective: Objective, monkeypatch: pytest.MonkeyPatch):
    stage = make_stage(objective, monkeypatch)
    loss, parts = stage.loss(make_batch([11, 14], [5, 5]), [trajectories()[0], None], epoch=0)
    assert torch.isfinite(loss)
    assert all(not part.requires_grad for part in parts.values())
    loss.backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in stage.model.parameters())
    assert all(p.grad is None for p in stage.teacher.parameters())


@pytest.mark.parametrize("objective", [CertaintyForcing(), NestedConsistency()], ids=lambda o: o.name)
def test_a_batch_without_usable_trajectories_has_a_zero_loss_and_a_backward(objective: Objective, monkeypatch: pytest.MonkeyPatch):
    stage = make_stage(objective, monkeypatch)
    loss, _ = stage.loss(make_batch([11, 14], [5, 5]), [None, None], epoch=0)
    assert loss.item() == 0
    loss.backward()
