"""``dscd``: the student learns the teacher's distributions with less of the block masked (CD4LM).

See docs/explain/method.md, "Other objectives".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from echo_pl.diffusion.distillation_losses import nested_loss
from echo_pl.diffusion.objectives.masks import MaskDraw, block_draws, check_mask_draw, in_blocks, mask_lowest
from echo_pl.diffusion.objectives.protocol import Objective, PseudoLabels, Rows

KLPositions = Literal["both", "student"]


@dataclass(frozen=True, kw_only=True)
class NestedConsistency(Objective):
    """``dscd``: lambda T^2 KL(softmax(q_T/T) || softmax(z/T)) + (1 - lambda) CE over M_S, with masks M_T in M_S.

    r_S ~ U(student_min, student_max), r_T = clip(r_S U(factor_min, factor_max), teacher_min, teacher_max), for every
    block.
    """

    student_min: float = 0.4
    """Range of r_S, the share of a block that the student sees masked."""
    student_max: float = 0.9
    factor_min: float = 0.3
    """Range of r_T / r_S before clipping."""
    factor_max: float = 0.7
    teacher_min: float = 0.1
    """Bounds of r_T, the share that the teacher sees masked."""
    teacher_max: float = 0.6
    temperature: float = 2.0
    """T, of both sides of the KL."""
    kl_weight: float = 0.7
    """lambda."""
    kl_positions: KLPositions = "both"
    """OPEN: the KL over positions masked for ``both``, or over all of M_S (``student``).

    Stage 2 never trained predictions of tokens that are visible to the teacher, hence the default.
    """
    mask_draw: MaskDraw = "exact"
    """OPEN: a rounded number of positions (``exact``), or every position with probability r (``bernoulli``)."""
    name: str = "dscd"
    needs_targets: bool = False

    def __post_init__(self) -> None:
        check_mask_draw(self.mask_draw)
        for name, low, high in (
            ("student", self.student_min, self.student_max),
            ("factor", self.factor_min, self.factor_max),
            ("teacher", self.teacher_min, self.teacher_max),
        ):
            if not 0.0 < low <= high <= 1.0:
                raise ValueError(f"{name}_min and {name}_max must satisfy 0 < {name}_min <= {name}_max <= 1, got {low} and {high}")
        if self.teacher_min > self.student_min:
            raise ValueError(
                f"teacher_min must not exceed student_min, or M_T is not within M_S; got {self.teacher_min} and {self.student_min}"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if not 0.0 <= self.kl_weight <= 1.0:
            raise ValueError(f"kl_weight must be in [0, 1], got {self.kl_weight}")
        if self.kl_positions not in get_args(KLPositions):
            raise ValueError(f"kl_positions must be one of {get_args(KLPositions)}, got {self.kl_positions!r}")

    def student_masks(self, labels: PseudoLabels, progress: float, generators: Sequence[torch.Generator]) -> Tensor:
        """M_S, (B, 1, R)."""
        return self._nested(labels, generators)[0]

    def teacher_masks(self, labels: PseudoLabels, progress: float, generators: Sequence[torch.Generator]) -> Tensor | None:
        """M_T, (B, 1, R)."""
        return self._nested(labels, generators)[1]

    def _nested(self, labels: PseudoLabels, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        maskable_BNL = in_blocks(labels.supervised_BR, labels.block_size)
        N, L = maskable_BNL.shape[1:]
        draws_BNx = block_draws(generators, N, 2 + L)
        student_BN = self.student_min + (self.student_max - self.student_min) * draws_BNx[..., 0]
        factor_BN = self.factor_min + (self.factor_max - self.factor_min) * draws_BNx[..., 1]
        teacher_BN = (student_BN * factor_BN).clamp(self.teacher_min, self.teacher_max)
        # One set of scores for both shares nests the masks.
        student, teacher = (
            mask_lowest(draws_BNx[..., 2:], share_BN, maskable_BNL, self.mask_draw).flatten(1)[:, None]
            for share_BN in (student_BN, teacher_BN)
        )
        device = labels.supervised_BR.device
        return student.to(device), teacher.to(device)

    def loss(self, rows: Rows, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """See :func:`echo_pl.diffusion.distillation_losses.nested_loss`."""
        assert rows.reference_logits_MV is not None, "dscd needs the teacher's logits"
        assert rows.reference_masked_M is not None, "dscd needs the teacher's masks"
        over_M = rows.reference_masked_M if self.kl_positions == "both" else torch.ones_like(rows.reference_masked_M)
        return nested_loss(
            rows.logits_MV, rows.reference_logits_MV, rows.token_M, over_M, self.temperature, self.kl_weight, rows.global_count
        )
