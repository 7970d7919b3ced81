"""The cache's bookkeeping: what is kept, what is written over, and whose rows go on."""

from __future__ import annotations

import pytest
import torch

from echo_pl.backbone.kv_cache import BlockKVCache
from echo_pl.diffusion.block_mask import CLEAN, FIRST_NOISY, concatenate, context_coords, response_coords

CPU = torch.device("cpu")


def step(cache: BlockKVCache, mark: float, tokens: int, rows: int = 2) -> torch.Tensor:
    """Write ``tokens`` keys of value ``mark`` in both layers; return what layer 0 then sees, one number per key."""
    block = torch.full((rows, 1, tokens, 4), mark) + torch.arange(rows)[:, None, None, None] / 10
    seen, _ = cache.update(block, -block, 0)
    cache.update(block, -block, 1)
    return seen[:, 0, :, 0]


def test_a_step_that_keeps_nothing_is_written_over():
    cache = BlockKVCache(layers=2, batch_size=2, capacity=12, device=CPU)
    cache.place(context_coords(torch.tensor([3, 3]), 3, 4))
    step(cache, 1.0, 3)
    cache.keep(3)
    for mark in (2.0, 3.0):
        key = cache.place(response_coords(FIRST_NOISY, 0, 4, 4, CPU))
        assert len(key) == 7
        assert step(cache, mark, 4)[0].tolist() == [1.0] * 3 + [mark] * 4
        cache.keep(0)
    assert cache.length == 3


def test_a_fused_step_keeps_its_first_block():
    cache = BlockKVCache(layers=2, batch_size=2, capacity=12, device=CPU)
    coords = concatenate(response_coords(CLEAN, 0, 4, 4, CPU), response_coords(FIRST_NOISY, 4, 4, 4, CPU))
    cache.place(coords)
    step(cache, 1.0, 8)
    cache.keep(4)
    key = cache.place(response_coords(FIRST_NOISY, 4, 4, 4, CPU))
    assert key.copy_BT[0].tolist() == [CLEAN] * 4 + [FIRST_NOISY] * 4
    assert key.block_BT[0].tolist() == [0] * 4 + [1] * 4
    assert step(cache, 5.0, 4)[0].tolist() == [1.0] * 4 + [5.0] * 4


def test_rows_that_go_on_keep_their_keys_and_coordinates():
    cache = BlockKVCache(layers=2, batch_size=3, capacity=8, device=CPU)
    cache.place(context_coords(torch.tensor([2, 4, 3]), 4, 4))
    step(cache, 1.0, 4, rows=3)
    cache.keep(4)
    cache.keep_rows(torch.tensor([0, 2]))
    assert cache.batch_size == 2
    key = cache.place(response_coords(FIRST_NOISY, 0, 4, 4, CPU))
    assert (key.copy_BT[:, :4] >= 0).sum(1).tolist() == [2, 3]
    seen = step(cache, 9.0, 4, rows=2)
    assert seen[:, 0].tolist() == pytest.approx([1.0, 1.2])


def test_a_full_cache_says_so():
    cache = BlockKVCache(layers=1, batch_size=1, capacity=6, device=CPU)
    cache.place(response_coords(CLEAN, 0, 4, 4, CPU))
    cache.keep(4)
    with pytest.raises(ValueError, match="KV cache is full: 4 tokens and 4 more exceed its capacity of 6"):
        cache.place(response_coords(CLEAN, 4, 4, 4, CPU))
