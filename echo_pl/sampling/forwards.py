"""The forwards of block decoding behind a prefill: denoise, write. With a vanilla or fused block KV cache, or none at all.

Every forward after prefill passes through ``NfeCounter.count``; there is no other count of nfe. Knows positions, caches and,
without one, coordinates; nothing of commit rules.

Shapes: A active samples, B batch, P context, L block size, Q queries of one forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from echo_pl.backbone.attention import QueryGroup
from echo_pl.backbone.kv_cache import BlockKVCache
from echo_pl.backbone.static_cache import StaticCache
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.block_mask import (
    CLEAN,
    FIRST_NOISY,
    AttentionRule,
    concatenate,
    context_coords,
    response_coords,
)
from echo_pl.diffusion.sequence import BlockedContext
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.prefill import Prefill
from echo_pl.structs import Batch


class NfeCounter:
    """Counts forwards after prefill: batched ones, and per sample those in which it took part."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._forwards: list[tuple[Tensor, bool]] = []

    def count(self, rows: Tensor, kv_write: bool = False) -> None:
        """One forward, in which these samples (int64, on the CPU) took part. Adding up is left for later: this is in every step."""
        self._forwards.append((rows, kv_write))

    @property
    def forwards(self) -> int:
        """Batched forwards."""
        return len(self._forwards)

    @property
    def nfe_B(self) -> Tensor:
        """int64: forwards of each sample."""
        return self._sum(rows for rows, _ in self._forwards)

    @property
    def kv_write_nfe_B(self) -> Tensor:
        """int64: those that did nothing but write keys and values."""
        return self._sum(rows for rows, kv_write in self._forwards if kv_write)

    def _sum(self, parts: Iterable[Tensor]) -> Tensor:
        rows = [torch.empty(0, dtype=torch.long), *parts]
        return torch.bincount(torch.cat(rows), minlength=self._batch_size)


def cache_capacity(config: DecodeConfig) -> int:
    """Tokens that a decode takes in the cache behind the contexts.

    Three blocks more than the response: the tail and the last block of the absolute grid, and the two blocks of a fused step.
    """
    return config.max_response_tokens + 3 * config.block_size


class CachedBlocks:
    """Block decoding over a KV cache (METHOD.md 4). ``fused`` puts the write of a block off to the next one's first forward."""

    def __init__(self, vlm: VLM, start: Prefill, config: DecodeConfig, counter: NfeCounter) -> None:
        """Start behind prefilled contexts."""
        self.vlm, self.config, self.counter = vlm, config, counter
        self.rows_A = torch.arange(len(start.behind_B))
        self.behind_A = start.behind_B
        self.cache: BlockKVCache | StaticCache = start.rewind(cache_capacity(config))
        self._pending_AL: Tensor | None = None

    def denoise(self, canvas_AL: Tensor, block: int, working: Tensor) -> Tensor:
        """One denoising forward of a block; returns logits (A, L, V). A pending block is written by the same forward.

        Args:
            canvas_AL: the block, open positions being mask tokens.
            block: its number.
            working: samples of the batch (int64, on the CPU) that have open positions.
        """
        L = self.config.block_size
        ids_AQ, offset, keep = self._inputs(canvas_AL, block)
        return self._forward(ids_AQ, offset, working, select=L, keep=keep)

    def _inputs(self, canvas_AL: Tensor, block: int) -> tuple[Tensor, int, int]:
        """Token ids of a denoising forward, the place of the first, and how many tokens it writes for good."""
        L, pending_AL = self.config.block_size, self._pending_AL
        if pending_AL is None:
            return canvas_AL, block * L, 0
        self._pending_AL = None
        return torch.cat([pending_AL, canvas_AL], dim=1), (block - 1) * L, L

    def finish_block(self, final_AL: Tensor, block: int) -> None:
        """Take a block's final tokens into the cache, now (vanilla) or with the next forward (fused)."""
        if self.config.kv_cache == "fused":
            self._pending_AL = final_AL
            return
        L = self.config.block_size
        self._forward(final_AL, block * L, self.rows_A, select=0, keep=L, kv_write=True)

    def keep_rows(self, rows_A: Tensor) -> None:
        """Go on with these of the active samples; the others cost nothing from here on."""
        self.rows_A = self.rows_A[rows_A.cpu()]
        self.behind_A = self.behind_A[rows_A]
        self.cache.keep_rows(rows_A)
        if self._pending_AL is not None:
            self._pending_AL = self._pending_AL[rows_A]

    def _forward(
        self,
        ids_AQ: Tensor,
        offset: int,
        working: Tensor,
        *,
        select: int,
        keep: int,
        kv_write: bool = False,
    ) -> Tensor:
        self.counter.count(working, kv_write)
        assert isinstance(self.cache, BlockKVCache)
        L, Q, kept = self.config.block_size, ids_AQ.shape[1], self.cache.length
        # What the rule comes to behind a cache: a block sees everything up to its own end.
        groups = tuple(QueryGroup(L, kept + end) for end in range(L, Q + 1, L))
        logits = self.vlm.decode_step(ids_AQ, self.behind_A + offset, groups, self.cache, select)
        self.cache.keep(keep)
        return logits


class UncachedBlocks:
    """The reference: every forward computes context, finished blocks and the current block from scratch."""

    def __init__(self, vlm: VLM, prompt: BlockedContext, batch: Batch, config: DecodeConfig, counter: NfeCounter) -> None:
        """Remember the contexts; there is no prefill."""
        self.vlm, self.config, self.counter = vlm, config, counter
        self.rows_A = torch.arange(len(prompt.context_ids_BP))
        self.ids_AT = prompt.context_ids_BP
        self.lengths_A = prompt.context_lengths_B
        self.positions, self.behind_A = vlm.context_positions(self.ids_AT, self.lengths_A, batch.image_grid_thw)
        self._images_per_row = len(batch.image_grid_thw) // len(batch)
        if self._images_per_row * len(batch) != len(batch.image_grid_thw):
            raise ValueError("kv_cache=none decodes batches with the same number of images per study; use vanilla or fused")
        self.images = batch.images

    def denoise(self, canvas_AL: Tensor, block: int, working: Tensor) -> Tensor:
        """See :meth:`CachedBlocks.denoise`."""
        self.counter.count(working)
        L, P, device = self.config.block_size, self.positions.shape[2], canvas_AL.device
        coords = concatenate(
            context_coords(self.lengths_A, P, L),
            response_coords(CLEAN, 0, block * L, L, device),
            response_coords(FIRST_NOISY, block * L, L, L, device),
        )
        response_AR = self.behind_A[:, None] + torch.arange((block + 1) * L, device=device)[None]
        return self.vlm(
            torch.cat([self.ids_AT, canvas_AL], dim=1),
            torch.cat([self.positions, response_AR.expand(3, -1, -1)], dim=2),
            AttentionRule(query=coords, key=coords, context_attention=self.config.context_attention, context_width=P),
            images=self.images,
            select=L,
        )

    def finish_block(self, final_AL: Tensor, block: int) -> None:
        """See :meth:`CachedBlocks.finish_block`."""
        self.ids_AT = torch.cat([self.ids_AT, final_AL], dim=1)

    def keep_rows(self, rows_A: Tensor) -> None:
        """See :meth:`CachedBlocks.keep_rows`."""
        self.rows_A, self.ids_AT = self.rows_A[rows_A.cpu()], self.ids_AT[rows_A]
        self.lengths_A, self.behind_A = self.lengths_A[rows_A], self.behind_A[rows_A]
        self.positions = self.positions[:, rows_A]
        numbers = (rows_A[:, None] * self._images_per_row + torch.arange(self._images_per_row, device=rows_A.device)).flatten()
        self.images = self.images.chosen(numbers)
