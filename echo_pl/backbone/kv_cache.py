"""A pre-allocated key/value cache that block decoding writes in place (METHOD.md 4).

One forward writes the keys and values of its queries behind the ``length`` tokens that count, and reads all of them as views: no
concatenation. What is then kept is a matter of moving ``length``: a denoising step keeps nothing, a fused step keeps its first L
tokens, a KV write all. All samples share the slots; shorter contexts have padding slots, which the coordinates tell.

Has the one method of a transformers cache that the attention layers call (``update``). Knows nothing of samplers.

Shapes: B batch, H key heads, S slots, D head size, Q tokens of one forward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echo_pl.diffusion.block_mask import TokenCoords


class BlockKVCache:
    """Keys and values of all layers, and the coordinates of the tokens they belong to."""

    def __init__(self, layers: int, batch_size: int, capacity: int, device: torch.device) -> None:
        """Reserve nothing yet: buffers take head count and dtype from the first forward.

        Args:
            layers: number of attention layers.
            batch_size: B.
            capacity: most tokens a sample may ever have here, those of a running step included.
            device: where the coordinates live.
        """
        self.capacity = capacity
        self.length = 0
        self.batch_size = batch_size
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self._coords = TokenCoords(
            copy_BT=torch.zeros(batch_size, capacity, dtype=torch.long, device=device),
            block_BT=torch.zeros(batch_size, capacity, dtype=torch.long, device=device),
            index_BT=torch.zeros(batch_size, capacity, dtype=torch.long, device=device),
        )

    def place(self, coords: TokenCoords) -> TokenCoords:
        """Announce the tokens of the next forward and return the coordinates of all keys it will see, as views.

        Raises:
            ValueError: the cache is full.
        """
        stop = self.length + len(coords)
        if stop > self.capacity:
            raise ValueError(
                f"KV cache is full: {self.length} tokens and {len(coords)} more exceed its capacity of {self.capacity}"
            )
        self._coords.copy_BT[:, self.length : stop] = coords.copy_BT
        self._coords.block_BT[:, self.length : stop] = coords.block_BT
        self._coords.index_BT[:, self.length : stop] = coords.index_BT
        return self._coords.slice(0, stop)

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write one layer's keys and values (B, H, Q, D) behind the kept ones; return all of them as views."""
        keys, values = self._keys[layer], self._values[layer]
        if keys is None or values is None:
            shape = (key.shape[0], key.shape[1], self.capacity, key.shape[3])
            keys = self._keys[layer] = torch.empty(shape, dtype=key.dtype, device=key.device)
            values = self._values[layer] = torch.empty(shape, dtype=value.dtype, device=value.device)
        stop = self.length + key.shape[2]
        keys[:, :, self.length : stop] = key
        values[:, :, self.length : stop] = value
        return keys[:, :, :stop], values[:, :, :stop]

    def keep(self, tokens: int) -> None:
        """Let the first ``tokens`` of the last forward count."""
        self.length += tokens

    def keep_rows(self, rows_A: Tensor) -> None:
        """Go on with these samples only (int64 row numbers, ascending)."""
        self.batch_size = len(rows_A)
        self._keys = [None if k is None else k[rows_A] for k in self._keys]
        self._values = [None if v is None else v[rows_A] for v in self._values]
        self._coords = TokenCoords(
            copy_BT=self._coords.copy_BT[rows_A],
            block_BT=self._coords.block_BT[rows_A],
            index_BT=self._coords.index_BT[rows_A],
        )
