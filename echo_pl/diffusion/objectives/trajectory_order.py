"""``d3llm``: masks from the teacher's own trajectory, with a share that grows over the training.

See docs/explain/method.md, "Other objectives".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from echo_pl.diffusion.distillation_losses import certainty_loss
from echo_pl.diffusion.objectives.masks import block_draws, complementary, in_blocks, mask_lowest
from echo_pl.diffusion.objectives.protocol import Objective, PseudoLabels, Rows

Ties = Literal["random", "left", "step"]


@dataclass(frozen=True, kw_only=True)
class TrajectoryOrder(Objective):
    """``d3llm``: (CE_m + CE_m' + 2 H_m) / 4; m: positions not yet committed by the teacher when a share r was masked.

    r ~ U(r_t, share_max) for every block, r_t rising linearly from share_start to share_max over the training. At
    share_max below 1 the student never sees a fully masked block, the input of one-step decoding.
    """

    share_start: float = 0.0
    """r_t at the start."""
    share_max: float = 0.8
    """Largest r, and r_t at the end."""
    entropy_weight: float = 2.0
    """Weight of H_m; the sum is divided by 4 whatever it is."""
    entropy_temperature: float = 0.5
    """OPEN: H is the entropy of softmax(z / this), as in ``dparallel``."""
    ties: Ties = "random"
    """OPEN: order of positions committed in one step: drawn every epoch (``random``), from the left (``left``), or none
    (``step``: a step is masked as a whole, so the share may exceed r)."""
    name: str = "d3llm"
    needs_targets: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.share_start <= self.share_max <= 1.0 or self.share_max == 0.0:
            raise ValueError(
                f"share_start and share_max must satisfy 0 <= share_start <= share_max <= 1 and share_max > 0, "
                f"got {self.share_start} and {self.share_max}"
            )
        if self.entropy_weight < 0:
            raise ValueError(f"entropy_weight must not be negative, got {self.entropy_weight}")
        if self.entropy_temperature <= 0:
            raise ValueError(f"entropy_temperature must be positive, got {self.entropy_temperature}")
        if self.ties not in get_args(Ties):
            raise ValueError(f"ties must be one of {get_args(Ties)}, got {self.ties!r}")

    def student_masks(self, labels: PseudoLabels, progress: float, generators: Sequence[torch.Generator]) -> Tensor:
        """m and m', (B, 2, R), for one forward."""
        maskable_BNL = in_blocks(labels.supervised_BR, labels.block_size)
        step_BNL = in_blocks(labels.commit_step_BR, labels.block_size)
        N, L = maskable_BNL.shape[1:]
        draws_BNx = block_draws(generators, N, 1 + L)
        lowest = self.share_start + (self.share_max - self.share_start) * progress
        share_BN = lowest + (self.share_max - lowest) * draws_BNx[..., 0]
        # The last committed positions are masked first; within a step, the fraction of the score decides.
        within_step = draws_BNx[..., 1:] if self.ties == "random" else 1 - torch.arange(1, L + 1) / (L + 1)
        masked_BNL = mask_lowest(within_step - step_BNL, share_BN, maskable_BNL, "exact")
        if self.ties == "step":
            never = torch.iinfo(step_BNL.dtype).max
            earliest_BN1 = step_BNL.masked_fill(~masked_BNL, never).amin(-1, keepdim=True)
            masked_BNL = maskable_BNL & (step_BNL >= earliest_BN1)
        return complementary(masked_BNL, labels)

    def loss(self, rows: Rows, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """See :func:`echo_pl.diffusion.distillation_losses.certainty_loss`."""
        loss, parts = certainty_loss(
            rows.logits_MV, rows.token_M, rows.copy_M, (self.entropy_weight, 0.0), self.entropy_temperature, rows.global_count
        )
        return loss / 4, parts
