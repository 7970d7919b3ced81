"""Block KV cache of constant shapes, for a step that is compiled or captured once and used for every block.

Position is held in tensors that change in place, where :class:`echo_pl.backbone.kv_cache.BlockKVCache` has views of growing length:
the slots that a step writes, and the bias that hides slots. Keys and values are those of the prefilled cache, (B, H, S, D).

Shapes: B batch, H key heads, G query heads per key head, S slots, D head size, L block size, Q queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echo_pl.backbone.attention import QueryGroup
from echo_pl.backbone.kv_cache import BlockKVCache, HiddenSlots


class StaticCache:
    """Cache of decode steps of L or 2L queries."""

    def __init__(self, cache: BlockKVCache, block_size: int, heads_per_key_head: int, dtype: torch.dtype) -> None:
        """Wrap a prefilled cache.

        Args:
            cache: contexts, with capacity for all that will be decoded.
            block_size: L; 1 for autoregressive decoding.
            heads_per_key_head: G.
            dtype: dtype of the scores.
        """
        self._cache, self._L = cache, block_size
        self.capacity = cache.capacity
        self.keys, self.values = cache.buffers()
        for buffer in (*self.keys, *self.values):
            # A step reads every slot, also those never written, and a bias does not hide a nan.
            buffer[:, :, cache.length :] = 0.0
        device = self.keys[0].device
        L, G, S, start = block_size, heads_per_key_head, self.capacity, cache.length
        self.slots = torch.arange(start, start + 2 * L, device=device)
        hidden = (
            torch.zeros(1, 1, 1, S, dtype=dtype, device=device) if cache.padding is None else cache.padding.bias.to(dtype).clone()
        )
        self._hidden = [hidden.clone(), hidden]
        for end, bias in zip((start + L, start + 2 * L), self._hidden, strict=True):
            bias[..., end:] = -torch.inf
        B = len(hidden)
        self._two_blocks = torch.stack([bias.expand(-1, G, -1, -1) for bias in self._hidden], dim=2)  # (B, G, 2, 1, S)
        self._two_blocks = self._two_blocks.expand(-1, -1, -1, L, -1).reshape(B, 1, G, 2, L, S).contiguous()
        self.padding = HiddenSlots(bias=self._hidden[0])

    def groups(self, queries: int) -> tuple[QueryGroup, ...]:
        """Query groups of a step of L or 2L queries, over all slots under a bias."""
        blocks = queries // self._L
        self.padding = HiddenSlots(bias=self._hidden[blocks - 1])
        return (QueryGroup(self._L, self.capacity),) * blocks

    def two_blocks_bias(self, block_size: int, heads_per_key_head: int, like: Tensor) -> Tensor:
        """See :meth:`BlockKVCache.two_blocks_bias`; only for the block size of this cache."""
        assert block_size == self._L, f"this cache is for steps of {self._L} tokens, got {block_size}"
        return self._two_blocks.flatten(2, 4)

    def update(self, key: Tensor, value: Tensor, layer: int, kwargs: object = None) -> tuple[Tensor, Tensor]:
        """Write one layer's keys and values (B, H, Q, D) into the next slots; return all slots."""
        keys, values, slots = self.keys[layer], self.values[layer], self.slots[: key.shape[2]]
        keys.index_copy_(2, slots, key)
        values.index_copy_(2, slots, value)
        return keys, values

    def keep(self, tokens: int) -> None:
        """Keep the first ``tokens`` (0 or L) of the last step.

        Raises:
            ValueError: the capacity does not allow another step.
        """
        if not tokens:
            return
        L = self._L
        start = self._cache.length
        if start + 2 * L > self.capacity:
            raise ValueError(f"KV cache is full: {start} tokens and {L} more leave no room for a step in its {self.capacity}")
        self._cache.keep(tokens)
        self.slots += tokens
        first, second = slice(start + L, start + 2 * L), slice(start + 2 * L, start + 3 * L)
        self._hidden[0][..., first] = 0.0
        self._hidden[1][..., second] = 0.0
        self._two_blocks[:, :, :, 0, :, first] = 0.0
        self._two_blocks[:, :, :, 1, :, second] = 0.0

    def keep_rows(self, rows_A: Tensor) -> None:
        """See :meth:`BlockKVCache.keep_rows`."""
        self._cache.keep_rows(rows_A)
        self.keys, self.values = self._cache.buffers()
        if len(self._hidden[0]) > 1:
            self._hidden = [bias[rows_A] for bias in self._hidden]
            self._two_blocks = self._two_blocks[rows_A]
