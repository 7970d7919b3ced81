"""What RAD is compared with: the layout of earlier work, which duplicates the context with the response.

``[c | xt | c' | x0]``, the whole sequence noisy (its context unharmed) and the whole sequence clean, under a dense mask. Its logits
on the response are RAD's (``tests/numerics/test_diffusion_layout.py``); it is here to be timed.

Shapes: B batch, P context, R response in whole blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.block_mask import CLEAN, CONTEXT, FIRST_NOISY, AttentionRule, TokenCoords, allowed, concatenate
from echo_pl.diffusion.sequence import BlockedResponse, TrainingSequence, rad_sequence


@dataclass(frozen=True, kw_only=True)
class FullDuplicationRule(AttentionRule):
    """Each half has a context of its own; the response sees the clean one. Dense view only: ``sdpa``."""

    half: int
    """P + R."""

    @cached_property
    def dense_BQK(self) -> Tensor:
        """Bool (B or 1, Q, K)."""
        mask = allowed(self.query, self.key, self.context_attention).clone()
        # What the rule says of "the" context holds within a half; a noisy response token sees no noisy context.
        in_context = self.key.copy_BT == CONTEXT
        first_half = torch.arange(len(self.key), device=in_context.device) < self.half
        context_query, context_key = in_context[:, :, None], in_context[:, None, :]
        other_half = first_half[:, None] != first_half[None, :]
        return mask & ~(context_query & context_key & other_half) & ~(~context_query & context_key & first_half[None, None, :])


def full_duplication(blocked: BlockedResponse, noisy_ids_BR: Tensor) -> tuple[Tensor, FullDuplicationRule]:
    """Token ids (B, 2 (P + R)) and their rule, for contexts of one length on the response grid.

    Raises:
        ValueError: ragged contexts, or the absolute grid.
    """
    context_BP, clean_BR = blocked.prompt.context_ids_BP, blocked.clean_ids_BR
    P, R = context_BP.shape[1], clean_BR.shape[1]
    if bool((blocked.prompt.context_lengths_B != P).any()) or blocked.layout.grid != "response":
        raise ValueError("full duplication is built for contexts of one length on the response grid")
    rad = rad_sequence(blocked, noisy_ids_BR[:, None])
    context, noisy, clean = rad.rule.key.slice(0, P), rad.rule.key.slice(P, P + R), rad.rule.key.slice(P + R, P + 2 * R)
    assert int(noisy.copy_BT[0, 0]) == FIRST_NOISY
    assert int(clean.copy_BT[0, 0]) == CLEAN
    coords: TokenCoords = concatenate(context, noisy, context, clean)
    rule = FullDuplicationRule(query=coords, key=coords, context_attention=blocked.layout.context_attention, half=P + R)
    return torch.cat([context_BP, noisy_ids_BR, context_BP, clean_BR], dim=1), rule


def full_duplication_positions(vlm: VLM, sequence: TrainingSequence, grid_thw: Tensor) -> Tensor:
    """(3, B, 2 (P + R)): both halves have the same, those of the RAD sequence of the same response."""
    P, R = sequence.context_width, sequence.response_width
    half = vlm.sequence_positions(sequence, grid_thw)[:, :, : P + R]
    return torch.cat([half, half], dim=2)
