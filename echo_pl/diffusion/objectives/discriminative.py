"""``ddo``: discriminate the teacher's tokens from the reference's own guesses (T3D).

See docs/explain/method.md, "Other objectives".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from echo_pl.diffusion.distillation_losses import (
    discriminative_loss,
    group_mean,
    token_log_probs,
    weighted_pseudo_label_loss,
)
from echo_pl.diffusion.losses import StepWeight
from echo_pl.diffusion.objectives.masks import MaskDraw, block_draws, check_mask_draw, in_blocks, mask_lowest
from echo_pl.diffusion.objectives.protocol import Objective, PseudoLabels, Rows

MeanOver = Literal["sample", "block"]


_MOST_BLOCKS = 1 << 20
"""Upper bound of block numbers, to join sample and block in one number."""


@dataclass(frozen=True, kw_only=True)
class Discriminative(Objective):
    """``ddo``: -log sig(b (l_phi(real) - l_ref(real))) - a log(1 - sig(b (l_phi(fake) - l_ref(fake)))) + 0.2 path CE.

    real: the teacher's tokens; fake: the argmax of the reference (the frozen teacher) on the same masked input; l: mean
    log-prob over the masked positions. Ids that no decoder emits are left out of l, for student and reference.
    """

    alpha: float = 0.5
    """a, weight of the fake term."""
    beta: float = 0.1
    """b."""
    path_weight: float = 0.2
    """Weight of the path CE, the cross-entropy on the teacher's tokens."""
    path_step_weight: StepWeight = "none"
    """OPEN: weight of a commit step in the path CE: 1 (``none``), or w(s) = s as in ``dcd`` (``linear``)."""
    mean_over: MeanOver = "sample"
    """OPEN: l is the mean over the masked positions of a ``sample``, or of a ``block``; each is then one comparison."""
    share_min: float = 1.0
    """OPEN: share of a block that is masked, from U(share_min, share_max); by default all, as in one-step decoding."""
    share_max: float = 1.0
    mask_draw: MaskDraw = "exact"
    """OPEN: a rounded number of positions (``exact``), or every position with that probability (``bernoulli``)."""
    name: str = "ddo"
    needs_targets: bool = False

    def __post_init__(self) -> None:
        check_mask_draw(self.mask_draw)
        if self.beta <= 0:
            raise ValueError(f"beta must be positive, got {self.beta}")
        if self.alpha < 0 or self.path_weight < 0:
            raise ValueError(f"alpha and path_weight must not be negative, got {self.alpha} and {self.path_weight}")
        if self.path_step_weight not in get_args(StepWeight):
            raise ValueError(f"path_step_weight must be one of {get_args(StepWeight)}, got {self.path_step_weight!r}")
        if self.mean_over not in get_args(MeanOver):
            raise ValueError(f"mean_over must be one of {get_args(MeanOver)}, got {self.mean_over!r}")
        if not 0.0 < self.share_min <= self.share_max <= 1.0:
            raise ValueError(
                f"share_min and share_max must satisfy 0 < share_min <= share_max <= 1, got {self.share_min} and {self.share_max}"
            )

    def student_masks(self, labels: PseudoLabels, progress: float, generators: Sequence[torch.Generator]) -> Tensor:
        """A share of every block, (B, 1, R)."""
        maskable_BNL = in_blocks(labels.supervised_BR, labels.block_size)
        N, L = maskable_BNL.shape[1:]
        draws_BNx = block_draws(generators, N, 1 + L)
        share_BN = self.share_min + (self.share_max - self.share_min) * draws_BNx[..., 0]
        masked_BNL = mask_lowest(draws_BNx[..., 1:], share_BN, maskable_BNL, self.mask_draw)
        return masked_BNL.flatten(1)[:, None].to(labels.supervised_BR.device)

    def teacher_masks(self, labels: PseudoLabels, progress: float, generators: Sequence[torch.Generator]) -> Tensor | None:
        """Masks of the student."""
        return self.student_masks(labels, progress, generators)

    def loss(self, rows: Rows, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """See :func:`echo_pl.diffusion.distillation_losses.discriminative_loss`."""
        assert rows.reference_logits_MV is not None, "ddo needs the reference's logits"
        reference_MV = rows.reference_logits_MV
        student_MV = rows.logits_MV.masked_fill(reference_MV.isneginf(), -torch.inf)
        group_M = rows.sample_M
        if self.mean_over == "block":
            group_M = rows.sample_M * _MOST_BLOCKS + rows.block_M
        log_ratio_real_G, log_ratio_fake_G = (
            group_mean(token_log_probs(student_MV, token_M) - token_log_probs(reference_MV, token_M), group_M)
            for token_M in (rows.token_M, reference_MV.argmax(-1))
        )
        loss, parts = discriminative_loss(log_ratio_real_G, log_ratio_fake_G, self.alpha, self.beta, rows.global_count)
        path = weighted_pseudo_label_loss(
            rows.logits_MV, rows.token_M, rows.commit_step_M, self.path_step_weight, rows.global_count
        )
        return loss + self.path_weight * path, {**parts, "path_ce": path.detach()}
