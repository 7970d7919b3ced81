"""``ce``: the teacher's tokens as hard targets, from the fully masked block (METHOD.md 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echo_pl.diffusion.losses import pseudo_label_loss
from echo_pl.diffusion.objectives.masks import fully_masked
from echo_pl.diffusion.objectives.protocol import Objective, PseudoLabels, Rows


@dataclass(frozen=True, kw_only=True)
class SequenceLevel(Objective):
    """``ce``: cross-entropy on the pseudo-labels from the fully masked block (the control; = ReDi one-step mode)."""

    name: str = "ce"
    needs_targets: bool = False

    def student_masks(self, labels: PseudoLabels, progress: float, generators: Sequence[torch.Generator]) -> Tensor:
        """Everything."""
        return fully_masked(labels)

    def loss(self, rows: Rows, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """See :func:`echo_pl.diffusion.losses.pseudo_label_loss`."""
        return pseudo_label_loss(rows.logits_MV, rows.token_M, rows.global_count), {}
