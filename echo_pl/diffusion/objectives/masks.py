"""Masks within blocks: all of a block, or a share of its supervised positions.

As with the noise of stage 2, draws come from each sample's own generator, block by block, so that neither the rest of the batch nor
its padding changes them.

Shapes: B batch, R response positions, N blocks, L block size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from echo_pl.diffusion.objectives.protocol import PseudoLabels

MaskDraw = Literal["exact", "bernoulli"]
"""Draw of a share: a rounded number of positions, or each with that probability; always at least one."""


def check_mask_draw(value: str) -> None:
    """Raise ValueError unless ``value`` is a :data:`MaskDraw`."""
    if value not in get_args(MaskDraw):
        raise ValueError(f"mask_draw must be one of {get_args(MaskDraw)}, got {value!r}")


def fully_masked(labels: PseudoLabels) -> Tensor:
    """One copy (B, 1, R) with every position masked, the input of a one-step decoder."""
    return torch.ones_like(labels.supervised_BR)[:, None]


def in_blocks(x_BR: Tensor, block_size: int) -> Tensor:
    """View (B, R) as (B, N, L), on the CPU, where masks are drawn."""
    return x_BR.cpu().unflatten(1, (-1, block_size))


def block_draws(generators: Sequence[torch.Generator], blocks: int, width: int) -> Tensor:
    """Uniform numbers (B, N, width), a row per block; those of the first blocks do not depend on how many there are."""
    return torch.stack([torch.rand(blocks, width, generator=generator) for generator in generators])


def mask_lowest(score_BNL: Tensor, share_BN: Tensor, maskable_BNL: Tensor, draw: MaskDraw) -> Tensor:
    """Mask a share of every block's maskable positions, those of the lowest score.

    With the same scores, a smaller share is masked within a larger one.

    Args:
        score_BNL: scores, the lowest are masked; uniform in [0, 1) for ``bernoulli``.
        share_BN: from 0 to 1.
        maskable_BNL: bool.
        draw: see :data:`MaskDraw`.

    Returns:
        bool (B, N, L); at least one position of every block that has a maskable one.
    """
    score_BNL = score_BNL.masked_fill(~maskable_BNL, torch.inf)
    rank_BNL = score_BNL.argsort(dim=-1, stable=True).argsort(dim=-1)
    if draw == "exact":
        wanted_BN = (share_BN * maskable_BNL.sum(-1)).round().clamp(min=1)
        chosen_BNL = rank_BNL < wanted_BN[..., None]
    else:
        chosen_BNL = (score_BNL < share_BN[..., None]) | (rank_BNL == 0)
    return chosen_BNL & maskable_BNL


def complementary(masked_BNL: Tensor, labels: PseudoLabels) -> Tensor:
    """Two copies (B, 2, R): a mask, and the rest of the supervised positions; on the labels' device."""
    masked_BR = masked_BNL.flatten(1).to(labels.supervised_BR.device)
    return torch.stack([masked_BR, labels.supervised_BR & ~masked_BR], dim=1)
