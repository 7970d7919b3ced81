"""The cache's bookkeeping: what is kept, what is overwritten, and which rows continue."""

from __future__ import annotations

import pytest
import torch

from echo_pl.backbone.kv_cache import BlockKVCache, compact_row_order


def step(cache: BlockKVCache, mark: float, tokens: int) -> torch.Tensor:
    """Write ``tokens`` keys of value ``mark`` in both layers; return what layer 0 then sees, one number per key."""
    rows = cache.batch_size
    block = torch.full((rows, 1, tokens, 4), mark) + torch.arange(rows)[:, None, None, None] / 10
    seen, _ = cache.update(block, -block, 0)
    cache.update(block, -block, 1)
    return seen[:, 0, :, 0]


def test_a_step_that_keeps_nothing_is_written_over():
    cache = BlockKVCache(layers=2, batch_size=2, capacity=12)
    step(cache, 1.0, 3)
    cache.keep(3)
    for mark in (2.0, 3.0):
        assert step(cache, mark, 4)[0].tolist() == [1.0] * 3 + [mark] * 4
        cache.keep(0)
    assert cache.length == 3


def test_a_fused_step_keeps_its_first_block():
    cache = BlockKVCache(layers=2, batch_size=2, capacity=12)
    step(cache, 1.0, 8)
    cache.keep(4)
    assert step(cache, 5.0, 4)[0].tolist() == [1.0] * 4 + [5.0] * 4


def test_rows_that_go_on_keep_their_keys_and_padding_in_the_same_memory():
    cache = BlockKVCache(layers=2, batch_size=4, capacity=8)
    step(cache, 1.0, 4)
    cache.keep(4)
    cache.hide_padding(torch.tensor([2, 4, 3, 1]), 4, torch.float32)
    before = [buffer.data_ptr() for buffer in (*cache._keys, *cache._values)]
    cache.keep_rows(compact_row_order(torch.tensor([False, False, True, True])))
    assert [buffer.data_ptr() for buffer in (*cache._keys, *cache._values)] == before
    assert cache.batch_size == 2
    assert (cache.padding.bias[:, 0, 0] == 0).sum(1).tolist() == [4 + 1, 4 + 3]
    assert (cache.padding.lengths_B.tolist(), cache.padding.width) == ([1, 3], 4)
    seen = step(cache, 9.0, 4)
    assert seen[:, 0].tolist() == pytest.approx([1.3, 1.2])
    assert seen[:, 4].tolist() == pytest.approx([9.0, 9.1])


def test_only_padding_is_hidden():
    cache = BlockKVCache(layers=1, batch_size=2, capacity=6)
    cache.hide_padding(torch.tensor([3, 3]), 3, torch.float64)
    assert cache.padding is None
    cache.hide_padding(torch.tensor([3, 1]), 3, torch.float64)
    hidden = -torch.inf
    assert cache.padding.bias[:, 0, 0].tolist() == [[0.0] * 6, [0.0, hidden, hidden, 0.0, 0.0, 0.0]]
    assert cache.padding.bias.dtype == torch.float64


@pytest.mark.parametrize("active", [[True] * 4, [True, False, True, True], [False, False, True, True], [False, True, False, False]])
def test_the_last_rows_fill_the_holes(active):
    order = compact_row_order(torch.tensor(active)).tolist()
    assert sorted(order) == [row for row, goes_on in enumerate(active) if goes_on]
    assert all(old >= new for new, old in enumerate(order))
    assert all(old == new for new, old in enumerate(order) if active[new])


def test_rows_never_move_up():
    cache = BlockKVCache(layers=2, batch_size=3, capacity=6)
    step(cache, 1.0, 4)
    with pytest.raises(AssertionError, match=r"smaller row number, got \[2, 0\]"):
        cache.keep_rows(torch.tensor([2, 0]))


def test_a_full_cache_says_so():
    cache = BlockKVCache(layers=2, batch_size=1, capacity=6)
    step(cache, 1.0, 4)
    cache.keep(4)
    with pytest.raises(ValueError, match="KV cache is full: 4 tokens and 4 more exceed its capacity of 6"):
        step(cache, 2.0, 4)


def test_under_autocast_the_cache_holds_what_attention_computes_in():
    """Else every step would convert the whole context."""
    cache = BlockKVCache(layers=1, batch_size=1, capacity=4)
    key = torch.randn(1, 1, 2, 4)
    keys, values = cache.update(key, key.to(torch.bfloat16), 0)
    assert (keys.dtype, values.dtype) == (torch.float32, torch.float32)
    assert torch.equal(keys, key)
    assert torch.equal(values, key.to(torch.bfloat16).float())
