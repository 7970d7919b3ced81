"""Training sequences: a response cut into blocks, and the RAD layout ``[context | xt copies | x0]``.

See docs/explain/method.md, "Stage 2: Response-Asymmetric Diffusion". With ``grid="absolute"`` blocks are counted from position 0:
the last P mod L context tokens share a block with the first response tokens. They move to the head of the response, clean in every
copy and never noised; the rest is the response grid again.

Shapes: B batch, P context, R response in whole blocks, K noisy copies, T = P + (K + 1) R, L block size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from echo_pl.diffusion.block_mask import (
    CLEAN,
    FIRST_NOISY,
    AttentionRule,
    ContextAttention,
    concatenate,
    context_coords,
    response_coords,
)
from echo_pl.structs import SpecialTokens

Grid = Literal["response", "absolute"]


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """Division of a response into blocks."""

    block_size: int
    grid: Grid = "response"
    context_attention: ContextAttention = "causal"
    supervise_eos_fill: bool = True
    """Supervise the eos tokens that fill the last block (OPEN in the paper)."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}")
        if self.grid not in get_args(Grid):
            raise ValueError(f"grid must be one of {get_args(Grid)}, got {self.grid!r}")
        if self.context_attention not in get_args(ContextAttention):
            raise ValueError(f"context_attention must be one of {get_args(ContextAttention)}, got {self.context_attention!r}")


@dataclass(frozen=True, kw_only=True)
class BlockedContext:
    """Contexts on a block grid: the prefilled part, and the tail that starts the first block (absolute grid only)."""

    context_ids_BP: Tensor
    context_lengths_B: Tensor
    tail_ids_BL: Tensor
    """(B, L - 1 or 0): the last ``tail_lengths_B`` context tokens, padded on the right."""
    tail_lengths_B: Tensor


@dataclass(frozen=True, kw_only=True)
class BlockedResponse:
    """Clean responses in whole blocks, with their maskable and supervised positions."""

    prompt: BlockedContext
    clean_ids_BR: Tensor
    maskable_BR: Tensor
    """bool: response tokens and eos fill; not the context tail."""
    supervised_BR: Tensor
    """bool: response tokens up to eos and, by option, the eos fill of the last block."""
    whole_lengths_B: Tensor
    """Tokens of each sample's own whole blocks, context tail and eos fill included."""
    layout: BlockLayout


def block_context(ids_BP: Tensor, lengths_B: Tensor, layout: BlockLayout, image_token: int) -> BlockedContext:
    """Put right-padded contexts on the layout's grid.

    Raises:
        ValueError: an image token would fall into the first response block (absolute grid).
    """
    if layout.grid == "response":
        empty = ids_BP.new_zeros(len(ids_BP), 0)
        return BlockedContext(
            context_ids_BP=ids_BP, context_lengths_B=lengths_B, tail_ids_BL=empty, tail_lengths_B=torch.zeros_like(lengths_B)
        )  # fmt: skip
    L = layout.block_size
    tail_B = lengths_B % L
    kept_B = lengths_B - tail_B
    offset_1L = torch.arange(L - 1, device=ids_BP.device)[None]
    source_BL = (kept_B[:, None] + offset_1L).clamp(max=ids_BP.shape[1] - 1)
    in_tail_BL = offset_1L < tail_B[:, None]
    tail_BL = torch.where(in_tail_BL, ids_BP.gather(1, source_BL), 0)
    if bool((tail_BL[in_tail_BL] == image_token).any()):
        raise ValueError(
            f"block_size {L} does not fit the absolute grid here: image tokens would share a block with the response; "
            "use a smaller block_size, a longer instruction, or grid=response"
        )
    context_ids_BP = ids_BP[:, : int(kept_B.max())]
    return BlockedContext(
        context_ids_BP=context_ids_BP, context_lengths_B=kept_B, tail_ids_BL=tail_BL, tail_lengths_B=tail_B
    )  # fmt: skip


def block_response(
    prompt: BlockedContext,
    response_ids_BR: Tensor,
    response_lengths_B: Tensor,
    layout: BlockLayout,
    special: SpecialTokens,
) -> BlockedResponse:
    """Cut right-padded responses (length counts their eos) into whole blocks, filled with eos."""
    L = layout.block_size
    total_B = prompt.tail_lengths_B + response_lengths_B
    whole_B = (total_B + L - 1) // L * L
    R = int(whole_B.max())
    index_BR = torch.arange(R, device=response_ids_BR.device)[None] - prompt.tail_lengths_B[:, None]
    in_tail_BR = index_BR < 0
    real_BR = ~in_tail_BR & (index_BR < response_lengths_B[:, None])
    source_BR = index_BR.clamp(0, response_ids_BR.shape[1] - 1)
    clean_BR = torch.where(real_BR, response_ids_BR.gather(1, source_BR), special.eos)
    width = min(prompt.tail_ids_BL.shape[1], R)
    tail_BR = torch.full_like(clean_BR, special.pad)
    tail_BR[:, :width] = prompt.tail_ids_BL[:, :width]
    fill_BR = ~in_tail_BR & ~real_BR & (torch.arange(R, device=real_BR.device)[None] < whole_B[:, None])
    return BlockedResponse(
        prompt=prompt,
        clean_ids_BR=torch.where(in_tail_BR, tail_BR, clean_BR),
        maskable_BR=~in_tail_BR,
        supervised_BR=real_BR | fill_BR if layout.supervise_eos_fill else real_BR,
        whole_lengths_B=whole_B,
        layout=layout,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingSequence:
    """Token ids and their attention rule. All copies share positions, see ``response_offset_T``."""

    input_ids_BT: Tensor
    context_lengths_B: Tensor
    rule: AttentionRule
    context_width: int
    response_lengths_B: Tensor
    """Tokens of one copy of each response without padding."""
    response_width: int
    noise_copies: int
    """0 for the autoregressive sequence."""

    @property
    def response_offset_T(self) -> Tensor:
        """(T - P,): index in the response of every token after the context; equal for all copies of a token."""
        one = torch.arange(self.response_width, device=self.input_ids_BT.device)
        return one.repeat(self.noise_copies + 1)

    def noisy_positions(self, chosen_BKR: Tensor) -> Tensor:
        """Map positions of the noisy copies, bool (B, K, R), to the sequence, bool (B, T)."""
        B = len(chosen_BKR)
        chosen_BT = torch.zeros_like(self.input_ids_BT, dtype=torch.bool)
        P, KR = self.context_width, self.noise_copies * self.response_width
        chosen_BT[:, P : P + KR] = chosen_BKR.reshape(B, KR)
        return chosen_BT


def rad_sequence(blocked: BlockedResponse, noisy_ids_BKR: Tensor) -> TrainingSequence:
    """Build ``[context | xt_1 .. xt_K | x0]`` with its rule: only the response is duplicated."""
    prompt, layout = blocked.prompt, blocked.layout
    B, K, R = noisy_ids_BKR.shape
    P, L, device = prompt.context_ids_BP.shape[1], layout.block_size, noisy_ids_BKR.device
    coords = concatenate(
        context_coords(prompt.context_lengths_B, P, L),
        *(response_coords(FIRST_NOISY + k, 0, R, L, device) for k in range(K)),
        response_coords(CLEAN, 0, R, L, device),
    )
    return TrainingSequence(
        input_ids_BT=torch.cat([prompt.context_ids_BP, noisy_ids_BKR.reshape(B, K * R), blocked.clean_ids_BR], dim=1),
        context_lengths_B=prompt.context_lengths_B,
        rule=AttentionRule(query=coords, key=coords, context_attention=layout.context_attention, context_width=P),
        context_width=P,
        response_lengths_B=blocked.whole_lengths_B,
        response_width=R,
        noise_copies=K,
    )


def autoregressive_sequence(
    context_ids_BP: Tensor, context_lengths_B: Tensor, response_ids_BR: Tensor, response_lengths_B: Tensor | None = None
) -> TrainingSequence:
    """Build ``[context | response]`` under causal attention: blocks of one clean token. Without lengths all responses fill R."""
    P, R = context_ids_BP.shape[1], response_ids_BR.shape[1]
    coords = concatenate(context_coords(context_lengths_B, P, 1), response_coords(CLEAN, 0, R, 1, response_ids_BR.device))
    return TrainingSequence(
        input_ids_BT=torch.cat([context_ids_BP, response_ids_BR], dim=1),
        context_lengths_B=context_lengths_B,
        rule=AttentionRule(query=coords, key=coords, context_width=P),
        context_width=P,
        response_lengths_B=torch.full_like(context_lengths_B, R) if response_lengths_B is None else response_lengths_B,
        response_width=R,
        noise_copies=0,
    )
