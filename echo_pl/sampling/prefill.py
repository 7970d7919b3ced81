"""Prefill: the keys and values of the contexts, computed once. Any number of decodes may start from it, one after the other.

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
    """Contexts in a cache with capacity for responses."""

    cache: BlockKVCache
    next_position_B: Tensor
    """Position of each sample's first response token."""
    logits_BV: Tensor | None
    """Logits after each context's last token; None: not requested."""
    width: int
    """P."""
    context_attention: ContextAttention
    block_size: int
    """Block size of the context; only ``block_causal`` depends on it."""
    seconds: float
    """Wall time, vision tower included."""

    def check(self, width: int, context_attention: ContextAttention, block_size: int) -> None:
        """Raise ValueError unless a decode with this layout can start from these contexts."""
        same_blocks = context_attention != "block_causal" or block_size == self.block_size
        if (width, context_attention) != (self.width, self.context_attention) or not same_blocks:
            raise ValueError(
                f"this prefill has contexts of {self.width} tokens, {self.context_attention} at block size {self.block_size}; the "
                f"decode needs {width} tokens, {context_attention} at block size {block_size}: prefill with its sampler"
            )

    def rewind(self, capacity: int) -> BlockKVCache:
        """Reset the cache to the contexts alone.

        Args:
            capacity: tokens to decode, those of a running step included.

        Raises:
            ValueError: the cache is too small, or an earlier decode has moved its rows.
        """
        if self.width + capacity > self.cache.capacity:
            raise ValueError(
                f"this prefill has capacity for {self.cache.capacity - self.width} tokens after its context of {self.width}, "
                f"the decode needs {capacity}: prefill with the sampler that will decode"
            )
        if self.cache.batch_size != len(self.next_position_B):
            raise ValueError("samples have left this prefill's cache in an earlier decode: prefill the batch again")
        self.cache.length = self.width
        return self.cache


@torch.no_grad()
def prefill(
    vlm: VLM,
    context_ids_BP: Tensor,
    lengths_B: Tensor,
    batch: Batch,
    *,
    capacity: int,
    block_size: int = 1,
    context_attention: ContextAttention = "causal",
    logits: Literal["last", "none"],
) -> Prefill:
    """Run the contexts through the model.

    Args:
        vlm: the model.
        context_ids_BP: token ids, padded on the right.
        lengths_B: context lengths.
        batch: the images of the contexts.
        capacity: tokens to reserve after the contexts.
        block_size: block size of the context, for ``block_causal``.
        context_attention: attention among context tokens.
        logits: ``last`` computes the logits after each context's last token.

    Raises:
        ValueError: context and capacity exceed the model's positions.
    """
    device = context_ids_BP.device
    started = now(device)
    B, P = context_ids_BP.shape
    if P + capacity > vlm.max_positions:
        raise ValueError(
            f"a context of {P} tokens and {capacity} for the response and the blocks in work are {P + capacity}, the model has "
            f"{vlm.max_positions} positions: "
            "shorten the context (smaller images, a shorter prompt) or max_response_tokens"
        )
    positions, next_position_B = vlm.context_positions(context_ids_BP, lengths_B, batch.image_grid_thw)
    cache = BlockKVCache(vlm.layers, B, P + capacity)
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
        next_position_B=next_position_B,
        logits_BV=logits_BV if logits == "last" else None,
        width=P,
        context_attention=context_attention,
        block_size=block_size,
        seconds=now(device) - started,
    )
