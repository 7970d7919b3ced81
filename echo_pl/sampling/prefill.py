"""Prefill: the keys and values of the contexts, computed once. Any number of decodings may start from it, one after the other.

Knows positions, the rule among context tokens and the cache; nothing of blocks to come.

Shapes: B batch, P context, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from echo_pl.backbone.kv_cache import BlockKVCache
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.block_mask import AttentionRule, ContextAttention, context_coords
from echo_pl.io.clock import now
from echo_pl.structs import Batch


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """Contexts in a cache that has room for responses."""

    cache: BlockKVCache
    behind_B: Tensor
    """Position of each sample's first response token."""
    logits_BV: Tensor | None
    """Behind each context's last token, where they were asked for."""
    width: int
    """P."""
    context_attention: ContextAttention
    block_size: int
    """Of the context; it matters to ``block_causal`` alone."""
    seconds: float
    """Wall time, vision tower included."""

    def check(self, width: int, context_attention: ContextAttention, block_size: int) -> None:
        """Raise ValueError unless these are the contexts of a decode with this layout."""
        same_blocks = context_attention != "block_causal" or block_size == self.block_size
        if (width, context_attention) != (self.width, self.context_attention) or not same_blocks:
            raise ValueError(
                f"this prefill has contexts of {self.width} tokens, {self.context_attention} at block size {self.block_size}; the "
                f"decode needs {width} tokens, {context_attention} at block size {block_size}: prefill with its sampler"
            )

    def rewind(self, room: int) -> BlockKVCache:
        """The cache with the contexts alone.

        Args:
            room: tokens that will be decoded, those of a running step included.

        Raises:
            ValueError: the cache has no such room, or an earlier decode has moved its rows.
        """
        if self.width + room > self.cache.capacity:
            raise ValueError(
                f"this prefill has room for {self.cache.capacity - self.width} tokens behind its context of {self.width}, "
                f"the decode needs {room}: prefill with the sampler that will decode"
            )
        if self.cache.batch_size != len(self.behind_B):
            raise ValueError("samples have left this prefill's cache in an earlier decode: prefill the batch anew")
        self.cache.length = self.width
        return self.cache


@torch.no_grad()
def prefill(
    vlm: VLM,
    context_ids_BP: Tensor,
    lengths_B: Tensor,
    batch: Batch,
    *,
    room: int,
    block_size: int = 1,
    context_attention: ContextAttention = "causal",
    logits: Literal["last", "none"],
) -> Prefill:
    """Run the contexts through the model.

    Args:
        vlm: the model.
        context_ids_BP: token ids, padded on the right.
        lengths_B: of the contexts.
        batch: with their images.
        room: tokens to reserve behind the contexts.
        block_size: of the context, read by ``block_causal``.
        context_attention: among context tokens.
        logits: whether those behind each context's last token are wanted.

    Raises:
        ValueError: context and room exceed the positions that the model knows.
    """
    device = context_ids_BP.device
    started = now(device)
    B, P = context_ids_BP.shape
    if P + room > vlm.max_positions:
        raise ValueError(
            f"a context of {P} tokens and {room} for the response and the blocks in work are {P + room}, the model has "
            f"{vlm.max_positions} positions: "
            "shorten the context (smaller images, a shorter prompt) or max_response_tokens"
        )
    positions, behind_B = vlm.context_positions(context_ids_BP, lengths_B, batch.image_grid_thw)
    cache = BlockKVCache(vlm.layers, B, P + room)
    coords = context_coords(lengths_B, P, block_size)
    last_BP = torch.arange(P, device=device)[None] == lengths_B[:, None] - 1
    logits_BV = vlm(
        context_ids_BP,
        positions,
        AttentionRule(query=coords, key=coords, context_attention=context_attention, context_width=P),
        images=batch.images,
        cache=cache,
        select=last_BP if logits == "last" else 0,
    )
    cache.keep(P)
    cache.hide_padding(lengths_B, P, vlm.dtype)
    return Prefill(
        cache=cache,
        behind_B=behind_B,
        logits_BV=logits_BV if logits == "last" else None,
        width=P,
        context_attention=context_attention,
        block_size=block_size,
        seconds=now(device) - started,
    )
