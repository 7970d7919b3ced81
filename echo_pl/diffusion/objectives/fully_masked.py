"""Objectives on the fully masked block: ``dcd`` (and ``sdtt``) with stitched targets, ``ce`` with hard targets.

See docs/explain/method.md, "Stage 3: Direct Conditional Distillation".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from echo_pl.diffusion.losses import DistillationConfig, direct_conditional_loss, pseudo_label_loss
from echo_pl.diffusion.objectives.masks import fully_masked
from echo_pl.diffusion.objectives.protocol import Objective, PseudoLabels, Rows


@dataclass(frozen=True, kw_only=True)
class DirectConditional(Objective):
    """``dcd``: KL to the stitched conditional targets, later commits weigh more, plus the eos term.

    ``sdtt`` is the same on trajectories of k random-order steps, without weights and without the eos term.
    """

    config: DistillationConfig = field(default_factory=DistillationConfig)
    name: str = "dcd"
    needs_targets: bool = True

    @property
    def needs_whole_targets(self) -> bool:
        """Reverse KL weighs the dropped tokens by the student's probabilities, which may be large where the teacher's are small."""
        return self.config.divergence == "reverse_kl" and self.config.ce_share < 1.0

    def student_masks(self, labels: PseudoLabels, progress: float, generators: Sequence[torch.Generator]) -> Tensor:
        """One copy (B, 1, R) with every position masked."""
        return fully_masked(labels)

    def loss(self, rows: Rows, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """See :func:`echo_pl.diffusion.losses.direct_conditional_loss`."""
        target = rows.target_MV if rows.top_M is None else rows.top_M
        assert target is not None, "dcd needs trajectories with distributions"
        return direct_conditional_loss(
            rows.logits_MV, target, rows.token_M, rows.commit_step_M, rows.eos, self.config, rows.global_count
        )


@dataclass(frozen=True, kw_only=True)
class SequenceLevel(Objective):
    """``ce``: cross-entropy on the pseudo-labels from the fully masked block (the control; = ReDi one-step mode)."""

    name: str = "ce"
    needs_targets: bool = False

    def student_masks(self, labels: PseudoLabels, progress: float, generators: Sequence[torch.Generator]) -> Tensor:
        """One copy (B, 1, R) with every position masked."""
        return fully_masked(labels)

    def loss(self, rows: Rows, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """See :func:`echo_pl.diffusion.losses.pseudo_label_loss`."""
        return pseudo_label_loss(rows.logits_MV, rows.token_M, rows.global_count), {}
