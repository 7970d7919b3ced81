"""Forwards of block decoding: the protocol that the sampler calls, with a KV cache (vanilla or fused) and without one.

Implements "Block KV cache" of docs/explain/method.md, "Decoding". ``NfeCounter.count`` counts every forward after prefill; there
is no other count of forwards.

Shapes: A active samples, B batch, P context, L block size, Q queries of one forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

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
from echo_pl.sampling.commit import BlockState, Commit, CommitRule, commit
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.prefill import Prefill
from echo_pl.structs import Batch


class NfeCounter:
    """Count of forwards after prefill, batched and per sample."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._forwards: list[tuple[Tensor, bool]] = []

    def count(self, rows: Tensor, kv_write: bool = False) -> None:
        """Add one forward of these samples (int64, on the CPU). The sums are made later, as this runs in every step."""
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
        """int64: forwards of each sample that only wrote keys and values."""
        return self._sum(rows for rows, kv_write in self._forwards if kv_write)

    def _sum(self, parts: Iterable[Tensor]) -> Tensor:
        rows = [torch.empty(0, dtype=torch.long), *parts]
        return torch.bincount(torch.cat(rows), minlength=self._batch_size)


class BlockForwards(Protocol):
    """Forwards of one decode, from contexts to committed tokens, whether cached, compiled, tilted or uncached."""

    @property
    def rows_A(self) -> Tensor:
        """Rows of the batch that are still decoded (int64, on the CPU)."""

    def step(self, number: int, state: BlockState, working_rows: Tensor, rule: CommitRule) -> Commit:
        """Run one denoising forward of a block, and commit.

        Args:
            number: block number, from 0.
            state: the block.
            working_rows: rows of the batch with masked positions (int64, on the CPU); these are counted.
            rule: choice of tokens and positions.
        """

    def finish_block(self, number: int, block_ids_AL: Tensor) -> None:
        """Make the final tokens of a block visible to the next blocks."""

    def keep_rows(self, kept_rows_A: Tensor) -> None:
        """Continue with these active samples only; called between blocks."""


def cache_capacity(config: DecodeConfig) -> int:
    """Tokens that a decode needs in the cache after the contexts.

    Three blocks more than the response: the tail and the last block of the absolute grid, and the two blocks of a fused step.
    """
    return config.max_response_tokens + 3 * config.block_size


class ForwardsOverCache:
    """Rows, positions and the pending block of decoding over a KV cache. ``fused`` delays the write of a block to the next step."""

    cache: BlockKVCache | StaticCache

    def __init__(self, start: Prefill, config: DecodeConfig, counter: NfeCounter) -> None:
        """Start after prefilled contexts."""
        self.config, self.counter = config, counter
        self.rows_A = torch.arange(len(start.next_position_B))
        self.next_position_A = start.next_position_B
        self.cache = start.rewind(cache_capacity(config))
        self._pending_AL: Tensor | None = None

    def finish_block(self, number: int, block_ids_AL: Tensor) -> None:
        """Write the block to the cache, now (vanilla) or with the next forward (fused)."""
        if self.config.kv_cache == "fused":
            self._pending_AL = block_ids_AL
            return
        self.counter.count(self.rows_A, kv_write=True)
        self._write(block_ids_AL, self.next_position_A + number * self.config.block_size)

    def keep_rows(self, kept_rows_A: Tensor) -> None:
        """See :class:`BlockForwards`."""
        self.rows_A = self.rows_A[kept_rows_A.cpu()]
        self.next_position_A = self.next_position_A[kept_rows_A]
        self.cache.keep_rows(kept_rows_A)
        if self._pending_AL is not None:
            self._pending_AL = self._pending_AL[kept_rows_A]

    def _queries(self, number: int, block_ids_AL: Tensor) -> tuple[Tensor, Tensor, int]:
        """Token ids of a denoising forward, the position of the first one, and how many of them stay in the cache."""
        L, pending_AL = self.config.block_size, self._pending_AL
        if pending_AL is None:
            return block_ids_AL, self.next_position_A + number * L, 0
        self._pending_AL = None
        return torch.cat([pending_AL, block_ids_AL], dim=1), self.next_position_A + (number - 1) * L, L

    def _write(self, block_ids_AL: Tensor, first_A: Tensor) -> None:
        raise NotImplementedError


class CachedForwards(ForwardsOverCache):
    """Block decoding over a KV cache of growing length."""

    cache: BlockKVCache

    def __init__(self, vlm: VLM, start: Prefill, config: DecodeConfig, counter: NfeCounter) -> None:
        """Start after prefilled contexts."""
        super().__init__(start, config, counter)
        self.vlm = vlm

    def step(self, number: int, state: BlockState, working_rows: Tensor, rule: CommitRule) -> Commit:
        """See :class:`BlockForwards`."""
        return commit(self.denoise(number, state.block_ids_AL, working_rows), state, rule)

    def denoise(self, number: int, block_ids_AL: Tensor, working_rows: Tensor) -> Tensor:
        """Logits (A, L, V) of one denoising forward; the same forward writes a pending block."""
        self.counter.count(working_rows)
        ids_AQ, first_A, n_kept = self._queries(number, block_ids_AL)
        return self._forward(ids_AQ, first_A, select=self.config.block_size, n_kept=n_kept)

    def _write(self, block_ids_AL: Tensor, first_A: Tensor) -> None:
        self._forward(block_ids_AL, first_A, select=0, n_kept=self.config.block_size)

    def _forward(self, ids_AQ: Tensor, first_A: Tensor, *, select: int, n_kept: int) -> Tensor:
        L, Q, cached = self.config.block_size, ids_AQ.shape[1], self.cache.length
        # The attention rule over a cache: a block sees every key up to its own end.
        groups = tuple(QueryGroup(L, cached + end) for end in range(L, Q + 1, L))
        logits = self.vlm.decode_step(ids_AQ, first_A, groups, self.cache, select)
        self.cache.keep(n_kept)
        return logits


class UncachedForwards:
    """The reference: every forward computes context, finished blocks and the current block again."""

    def __init__(self, vlm: VLM, prompt: BlockedContext, batch: Batch, config: DecodeConfig, counter: NfeCounter) -> None:
        """Keep the contexts; there is no prefill."""
        self.vlm, self.config, self.counter = vlm, config, counter
        self.rows_A = torch.arange(len(prompt.context_ids_BP))
        self.ids_AT = prompt.context_ids_BP
        self.lengths_A = prompt.context_lengths_B
        self.positions, self.next_position_A = vlm.context_positions(self.ids_AT, self.lengths_A, batch.image_grid_thw)
        self._images_per_row = len(batch.image_grid_thw) // len(batch)
        if self._images_per_row * len(batch) != len(batch.image_grid_thw):
            raise ValueError("kv_cache=none decodes batches with the same number of images per study; use vanilla or fused")
        self.images = batch.images

    def step(self, number: int, state: BlockState, working_rows: Tensor, rule: CommitRule) -> Commit:
        """See :class:`BlockForwards`."""
        self.counter.count(working_rows)
        L, P, device = self.config.block_size, self.positions.shape[2], state.block_ids_AL.device
        coords = concatenate(
            context_coords(self.lengths_A, P, L),
            response_coords(CLEAN, 0, number * L, L, device),
            response_coords(FIRST_NOISY, number * L, L, L, device),
        )
        response_AR = self.next_position_A[:, None] + torch.arange((number + 1) * L, device=device)[None]
        logits_ALV = self.vlm(
            torch.cat([self.ids_AT, state.block_ids_AL], dim=1),
            torch.cat([self.positions, response_AR.expand(3, -1, -1)], dim=2),
            AttentionRule(query=coords, key=coords, context_attention=self.config.context_attention, context_width=P),
            images=self.images,
            select=L,
        )
        return commit(logits_ALV, state, rule)

    def finish_block(self, number: int, block_ids_AL: Tensor) -> None:
        """See :class:`BlockForwards`."""
        self.ids_AT = torch.cat([self.ids_AT, block_ids_AL], dim=1)

    def keep_rows(self, kept_rows_A: Tensor) -> None:
        """See :class:`BlockForwards`."""
        self.rows_A, self.ids_AT = self.rows_A[kept_rows_A.cpu()], self.ids_AT[kept_rows_A]
        self.lengths_A, self.next_position_A = self.lengths_A[kept_rows_A], self.next_position_A[kept_rows_A]
        self.positions = self.positions[:, kept_rows_A]
        of_row = torch.arange(self._images_per_row, device=kept_rows_A.device)
        self.images = self.images.chosen((kept_rows_A[:, None] * self._images_per_row + of_row).flatten())
