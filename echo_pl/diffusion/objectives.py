"""Distillation objectives over pseudo-labels: what the student sees masked, and what it is scored on (METHOD.md 3, phase 2).

An objective knows token ids, masks and distributions of one batch; nothing of models or of how trajectories came to be. Each
states the masks it needs; the stage runs the models on them and hands back the rows.

Shapes: B batch, K masked copies, R response positions, M chosen positions (those masked and supervised, in (B, K, R) order),
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from echo_pl.diffusion.losses import DistillationConfig, direct_conditional_loss, pseudo_label_loss


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """Teacher trajectories of a batch, padded to whole blocks."""

    token_BR: Tensor
    commit_step_BR: Tensor
    """From 1; 0 where there is no trajectory."""
    supervised_BR: Tensor
    """bool: positions up to the block of the first eos, of usable trajectories."""
    block_size: int
    target_BRV: Tensor | None = None
    """Stitched targets, for objectives that need them."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Predictions and targets at the chosen positions."""

    logits_MV: Tensor
    """The student's."""
    token_M: Tensor
    commit_step_M: Tensor
    copy_M: Tensor
    """Which masked copy a row is from."""
    eos: int
    target_MV: Tensor | None = None
    reference_logits_MV: Tensor | None = None
    """The frozen teacher's on ``teacher_masks``, for objectives that ask for it."""


class Objective(Protocol):
    """A way to distil. ``progress`` runs from 0 to 1 over the training."""

    name: str
    needs_targets: bool
    """Whether trajectories must carry distributions."""

    def student_masks(self, labels: PseudoLabels, progress: float, generators: list[torch.Generator]) -> Tensor:
        """What the student sees masked: bool (B, K, R)."""
        ...

    def loss(self, rows: Rows, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its detached parts, by name."""
        ...


def fully_masked(labels: PseudoLabels) -> Tensor:
    """One copy with every position masked: what a one-step decoder sees."""
    return torch.ones_like(labels.supervised_BR)[:, None]


@dataclass(frozen=True, kw_only=True)
class DirectConditional:
    """``dcd``: KL to the stitched conditional targets, later commits weigh more, plus the eos term."""

    config: DistillationConfig = field(default_factory=DistillationConfig)
    name: str = "dcd"
    needs_targets: bool = True

    def student_masks(self, labels: PseudoLabels, progress: float, generators: list[torch.Generator]) -> Tensor:
        """Everything."""
        return fully_masked(labels)

    def loss(self, rows: Rows, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """See :func:`echo_pl.diffusion.losses.direct_conditional_loss`."""
        assert rows.target_MV is not None, "dcd needs trajectories with distributions"
        return direct_conditional_loss(
            rows.logits_MV, rows.target_MV, rows.token_M, rows.commit_step_M, rows.eos, self.config
        )


@dataclass(frozen=True, kw_only=True)
class SequenceLevel:
    """``ce``: cross-entropy on the pseudo-labels from the fully masked block (the control; hard targets)."""

    name: str = "ce"
    needs_targets: bool = False

    def student_masks(self, labels: PseudoLabels, progress: float, generators: list[torch.Generator]) -> Tensor:
        """Everything."""
        return fully_masked(labels)

    def loss(self, rows: Rows, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """See :func:`echo_pl.diffusion.losses.pseudo_label_loss`."""
        return pseudo_label_loss(rows.logits_MV, rows.token_M), {}
