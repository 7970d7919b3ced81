"""``dparallel``: complementary masks of a block, and certainty where the student is already right.

See docs/explain/method.md, "Other objectives".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echo_pl.diffusion.distillation_losses import certainty_loss
from echo_pl.diffusion.objectives.masks import (
    MaskDraw,
    block_draws,
    check_mask_draw,
    complementary,
    in_blocks,
    mask_lowest,
)
from echo_pl.diffusion.objectives.protocol import Objective, PseudoLabels, Rows


@dataclass(frozen=True, kw_only=True)
class CertaintyForcing(Objective):
    """``dparallel``: CE_m + CE_m' + beta (H_m + H_m'), m and m' complementary masks of every block."""

    beta: float = 2.0
    """Weight of the entropies."""
    entropy_temperature: float = 0.5
    """Temperature of the softmax whose entropy is H."""
    mask_share: float = 0.5
    """Share of a block that m masks."""
    mask_draw: MaskDraw = "exact"
    """OPEN: half of the block's positions (``exact``), or every position with probability one half (``bernoulli``)."""
    name: str = "dparallel"
    needs_targets: bool = False

    def __post_init__(self) -> None:
        check_mask_draw(self.mask_draw)
        if self.beta < 0:
            raise ValueError(f"beta must not be negative, got {self.beta}")
        if self.entropy_temperature <= 0:
            raise ValueError(f"entropy_temperature must be positive, got {self.entropy_temperature}")
        if not 0.0 < self.mask_share < 1.0:
            raise ValueError(f"mask_share must be in (0, 1), got {self.mask_share}")

    def student_masks(self, labels: PseudoLabels, progress: float, generators: Sequence[torch.Generator]) -> Tensor:
        """m and m', (B, 2, R), for one forward."""
        maskable_BNL = in_blocks(labels.supervised_BR, labels.block_size)
        N, L = maskable_BNL.shape[1:]
        share_BN = torch.full(maskable_BNL.shape[:2], self.mask_share)
        masked_BNL = mask_lowest(block_draws(generators, N, L), share_BN, maskable_BNL, self.mask_draw)
        return complementary(masked_BNL, labels)

    def loss(self, rows: Rows, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """See :func:`echo_pl.diffusion.distillation_losses.certainty_loss`."""
        return certainty_loss(
            rows.logits_MV, rows.token_M, rows.copy_M, (self.beta, self.beta), self.entropy_temperature, rows.global_count
        )
