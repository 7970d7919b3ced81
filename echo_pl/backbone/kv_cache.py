"""Key/value cache of block decoding: one buffer (B, H, S, D) of keys and one of values for each layer, written in place.

- ``update``: write a forward's keys and values after the kept tokens; return all of them as views, without concatenation
- ``keep``: advance ``length`` by the tokens of the last forward that stay: none after a denoising step, the first L after a fused
  step, all after a KV write
- ``keep_rows``: drop finished samples
- ``hide_padding``: hide the padding slots of shorter contexts

See docs/explain/method.md, "Decoding". The attention layers of transformers call ``update`` as they do a transformers cache.

Shapes: B batch, H key heads, S slots, D head size, Q tokens of one forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class HiddenSlots:
    """Slots that a sample's queries may not attend to."""

    bias: Tensor
    """(B or 1, 1, 1, S) to add to scores: -inf at these slots, 0 elsewhere."""


@dataclass(frozen=True, kw_only=True)
class CachePadding(HiddenSlots):
    """Padding of ragged contexts: of the first ``width`` slots, each sample fills its first ``lengths``."""

    width: int
    lengths_B: Tensor

    def rows(self, rows_A: Tensor) -> CachePadding:
        """Padding of some of the samples."""
        return CachePadding(width=self.width, lengths_B=self.lengths_B[rows_A], bias=self.bias[rows_A])


class BlockKVCache:
    """Keys and values of all layers."""

    def __init__(self, layers: int, batch_size: int, capacity: int) -> None:
        """Set the sizes; buffers are allocated at the first forward, which gives head count, dtype and device.

        ``capacity`` is S: the most tokens of a sample, those of a running step included.
        """
        self.capacity = capacity
        self.length = 0
        self.batch_size = batch_size
        self.padding: CachePadding | None = None
        """None: no slot is padding."""
        self._two_blocks: dict[int, tuple[Tensor, slice]] = {}
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers

    def hide_padding(self, lengths_B: Tensor, width: int, dtype: torch.dtype) -> None:
        """Hide, of the first ``width`` slots, those after each sample's first ``lengths``."""
        if bool((lengths_B == width).all()):
            return
        slot_S = torch.arange(self.capacity, device=lengths_B.device)
        hidden_BS = (slot_S >= lengths_B[:, None]) & (slot_S < width)
        padding_BS = torch.zeros(hidden_BS.shape, dtype=dtype, device=lengths_B.device).masked_fill_(hidden_BS, -torch.inf)
        self.padding = CachePadding(width=width, lengths_B=lengths_B, bias=padding_BS[:, None, None])

    def update(self, key: Tensor, value: Tensor, layer: int, kwargs: object = None) -> tuple[Tensor, Tensor]:
        """Write one layer's keys and values (B, H, Q, D) after the kept ones; return all of them as views.

        ``kwargs`` belongs to the interface of a transformers cache, for kinds of attention that Qwen2.5-VL does not have.

        Raises:
            ValueError: the cache is full.
        """
        keys, values = self._keys[layer], self._values[layer]
        if keys is None or values is None:
            shape = (key.shape[0], key.shape[1], self.capacity, key.shape[3])
            dtype = computing_dtype(key, value)
            keys = self._keys[layer] = torch.empty(shape, dtype=dtype, device=key.device)
            values = self._values[layer] = torch.empty(shape, dtype=dtype, device=value.device)
        B, stop = self.batch_size, self.length + key.shape[2]
        if stop > self.capacity:
            raise ValueError(
                f"KV cache is full: {self.length} tokens and {key.shape[2]} more exceed its capacity of {self.capacity}"
            )
        keys[:B, :, self.length : stop] = key
        values[:B, :, self.length : stop] = value
        return keys[:B, :, :stop], values[:B, :, :stop]

    def buffers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of all layers with all slots, (B, H, S, D) each, of the active samples.

        Raises:
            ValueError: the cache is empty.
        """
        B = self.batch_size
        keys, values = ([buffer[:B] for buffer in side if buffer is not None] for side in (self._keys, self._values))
        if not keys:
            raise ValueError("the cache is empty: prefill it first")
        return keys, values

    def two_blocks_bias(self, block_size: int, heads_per_key_head: int, like: Tensor) -> Tensor:
        """Bias (B or 1, 1, H / G * 2L, K) of a fused step, whose first block must not attend to the second.

        A view of a buffer that is made once; from step to step only the columns of the second block change.
        """
        L, G = block_size, heads_per_key_head
        if L not in self._two_blocks:
            bias = torch.zeros(1, 1, G, 2 * L, self.capacity, dtype=like.dtype, device=like.device)
            if self.padding is not None:
                bias = bias + self.padding.bias.to(like.dtype)[:, :, None]
            self._two_blocks[L] = bias, slice(0, 0)
        bias, hidden = self._two_blocks[L]
        second = slice(self.length + L, self.length + 2 * L)
        if second != hidden:
            bias[:, :, :, :L, hidden] = 0.0  # after the contexts, where nothing is padding
            bias[:, :, :, :L, second] = -torch.inf
            self._two_blocks[L] = bias, second
        return bias.flatten(2, 3)[..., : self.length + 2 * L]

    def keep(self, tokens: int) -> None:
        """Keep the first ``tokens`` of the last forward."""
        self.length += tokens

    def keep_rows(self, rows_A: Tensor) -> None:
        """Keep these samples only, in this order; :func:`compact_row_order` gives the order that moves the fewest.

        Kept tokens move within the buffers. A sample may only move to a smaller row number.
        """
        moves = [(new, old) for new, old in enumerate(rows_A.tolist()) if new != old]
        assert all(new < old for new, old in moves), f"a sample may only move to a smaller row number, got {rows_A.tolist()}"
        for buffer in (*self._keys, *self._values):
            if buffer is not None:
                for new, old in moves:
                    buffer[new, :, : self.length] = buffer[old, :, : self.length]
        if self.padding is not None:
            self.padding = self.padding.rows(rows_A)
            self._two_blocks.clear()
        self.batch_size = len(rows_A)


def computing_dtype(key: Tensor, value: Tensor) -> torch.dtype:
    """Dtype of attention and of the cache, so that a step converts its own tokens and never the context.

    Dtypes differ only under autocast: values are bfloat16, while the rotary embedding has made queries and keys float32. Then it is
    float32 on a CPU, whose bfloat16 kernels are slow, and the values' dtype elsewhere.
    """
    return key.dtype if value.device.type == "cpu" else value.dtype


def compact_row_order(active_B: Tensor) -> Tensor:
    """Row numbers (A,) of the active samples, with the last ones moved into the rows of inactive samples.

    >>> compact_row_order(torch.tensor([True, False, True, False, True])).tolist()
    [0, 4, 2]
    """
    rows = active_B.nonzero()[:, 0]
    order = torch.arange(len(rows), device=rows.device)
    holes = ~active_B[: len(rows)]
    order[holes] = rows[len(rows) - int(holes.sum()) :].flip(0)
    return order
