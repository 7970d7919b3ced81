"""Every view of the attention rule equals the method's table, as written again in ``tests/method.py``."""

from __future__ import annotations

import itertools

import pytest
import torch
from method import allowed_QK, context_tokens, rad_tokens, response_tokens
from models import SPECIAL, make_batch
from torch import Tensor

from echo_pl.diffusion.block_mask import (
    CLEAN,
    FIRST_NOISY,
    PADDING,
    AttentionRule,
    concatenate,
    context_coords,
    response_coords,
)
from echo_pl.diffusion.sequence import (
    BlockLayout,
    autoregressive_sequence,
    block_context,
    block_response,
    rad_sequence,
)

MODES = ["causal", "block_causal", "full"]
CONTEXTS, RESPONSES = [9, 14, 11], [10, 13, 7]


def rad_rule(grid: str, context_attention: str, copies: int, block_size: int) -> tuple[AttentionRule, Tensor]:
    """A RAD sequence's rule, and the table's matrices for it (B, T, T)."""
    batch = make_batch(CONTEXTS, RESPONSES)
    layout = BlockLayout(block_size=block_size, grid=grid, context_attention=context_attention)
    prompt = block_context(batch.context_ids_BP, batch.context_lengths_B, layout, SPECIAL.image)
    blocked = block_response(prompt, batch.response_ids_BR, batch.response_lengths_B, layout, SPECIAL)
    R = blocked.clean_ids_BR.shape[1]
    sequence = rad_sequence(blocked, blocked.clean_ids_BR[:, None].expand(-1, copies, -1))
    kept = [p if grid == "response" else p // block_size * block_size for p in CONTEXTS]
    rows = [rad_tokens(p, max(kept), R, block_size, copies) for p in kept]
    return sequence.rule, torch.stack([allowed_QK(row, row, context_attention) for row in rows])


CASES = [
    (grid, mode, copies, block_size)
    for grid in ("response", "absolute")
    for mode in MODES
    for copies, block_size in ((1, 4), (3, 4), (2, 1), (1, 6))
]


@pytest.mark.parametrize(("grid", "mode", "copies", "block_size"), CASES)
def test_dense_view_is_the_table(grid, mode, copies, block_size):
    rule, table = rad_rule(grid, mode, copies, block_size)
    assert torch.equal(rule.dense_BQK.expand(len(table), -1, -1), table)


@pytest.mark.parametrize(("grid", "mode", "copies", "block_size"), CASES)
def test_split_view_put_together_is_the_table(grid, mode, copies, block_size):
    rule, table = rad_rule(grid, mode, copies, block_size)
    view, P = rule.split, rule.split.context_width
    together = torch.zeros_like(table)
    causal = torch.ones(P, P, dtype=torch.bool).tril()
    together[:, :P, :P] = causal if view.context_BPP is None else view.context_BPP
    together[:, P:, :P] = True if view.response_to_context_BQK is None else view.response_to_context_BQK
    together[:, P:, P:] = view.response_BQK
    # What padding queries see does not matter: nobody sees them.
    real = rule.query.copy_BT.expand(len(table), -1) != PADDING
    assert torch.equal(together[real], table[real])


@pytest.mark.parametrize(("grid", "mode", "copies", "block_size"), CASES)
def test_flex_view_is_the_table(grid, mode, copies, block_size):
    from torch.nn.attention.flex_attention import create_mask

    rule, table = rad_rule(grid, mode, copies, block_size)
    mask = create_mask(rule.mask_mod(), B=len(table), H=1, Q_LEN=table.shape[1], KV_LEN=table.shape[2], device="cpu")
    assert torch.equal(mask[:, 0], table)


def test_flex_blocks_leave_nothing_out():
    """Tiles of 128 x 128: those with an allowed pair are computed, those without are skipped."""
    lengths = torch.tensor([150, 300])
    rule = AttentionRule(
        query=(coords := concatenate(
            context_coords(lengths, 300, 8),
            response_coords(FIRST_NOISY, 0, 160, 8, lengths.device),
            response_coords(CLEAN, 0, 160, 8, lengths.device),
        )),
        key=coords,
    )  # fmt: skip
    table = torch.stack([allowed_QK(row, row, "causal") for row in (rad_tokens(p, 300, 160, 8, 1) for p in (150, 300))])
    T, tiles = table.shape[1], -(-table.shape[1] // 128)
    padded = torch.zeros(2, tiles * 128, tiles * 128, dtype=torch.bool)
    padded[:, :T, :T] = table
    tiled = padded.view(2, tiles, 128, tiles, 128).any(dim=(2, 4))
    assert torch.equal(rule.flex_mask.to_dense()[:, 0].bool(), tiled)
    assert not bool(tiled.all())


def test_autoregressive_rule_is_causal():
    batch = make_batch([6, 9], [5, 4])
    rule = autoregressive_sequence(batch.context_ids_BP, batch.context_lengths_B, batch.response_ids_BR).rule
    for row, length in enumerate([6, 9]):
        real = [*range(length), *range(9, 14)]
        dense = rule.dense_BQK[row][real][:, real]
        assert torch.equal(dense, torch.ones(len(real), len(real), dtype=torch.bool).tril())
        assert not bool(rule.dense_BQK[row][real][:, length:9].any())


@pytest.mark.parametrize("mode", MODES)
def test_rules_of_decode_steps_are_rows_of_the_table(mode):
    """A fused step asks for [clean block 1 | noisy block 2] against the cache [context | clean block 0] and itself."""
    lengths, P, L = torch.tensor([5, 7]), 7, 4
    step = concatenate(response_coords(CLEAN, L, L, L, lengths.device), response_coords(FIRST_NOISY, 2 * L, L, L, lengths.device))
    cached = concatenate(context_coords(lengths, P, L), response_coords(CLEAN, 0, L, L, lengths.device))
    rule = AttentionRule(query=step, key=concatenate(cached, step), context_attention=mode)
    clean, noisy = response_tokens("x0", 12, L), response_tokens("xt", 12, L)
    queries = clean[L : 2 * L] + noisy[2 * L :]
    for row, length in enumerate([5, 7]):
        keys = context_tokens(length, P, L) + clean[:L] + queries
        assert torch.equal(rule.dense_BQK[row], allowed_QK(queries, keys, mode))


@pytest.mark.parametrize(("grid", "mode", "copies", "block_size"), CASES)
def test_varlen_view_put_together_is_the_table_and_says_nothing_twice(grid, mode, copies, block_size):
    rule, table = rad_rule(grid, mode, copies, block_size)
    B, T, _ = table.shape
    view = rule.varlen(B)
    assert rule.varlen(B) is view
    times = torch.zeros(B * T, B * T, dtype=torch.long)
    for part in view.parts:
        assert part.query_ends.dtype == part.key_ends.dtype == torch.int32
        ends = list(zip(part.query_ends.tolist(), part.key_ends.tolist(), strict=True))
        for (q0, k0), (q1, k1) in itertools.pairwise(ends):
            queries, keys = part.query_X[q0:q1], part.key_Y[k0:k1]
            assert 0 < len(queries) <= part.longest_query
            assert 0 < len(keys) <= part.longest_key
            seen = torch.ones(len(queries), len(keys), dtype=torch.long)
            if part.causal:
                assert len(queries) == len(keys)
                seen = seen.tril()
            times[queries[:, None], keys] += seen
    together = torch.stack([times[b * T : (b + 1) * T, b * T : (b + 1) * T] for b in range(B)])
    assert int(times.sum()) == int(together.sum()), "no sample sees another"
    P = view.causal_width
    together[:, :P, :P] += torch.ones(P, P, dtype=torch.long).tril()
    real = rule.query.copy_BT.expand(B, -1) != PADDING
    assert torch.equal(together[real], table[real].long())


def test_a_rule_of_decode_steps_has_no_view_of_a_whole_sequence():
    coords = response_coords(CLEAN, 0, 4, 4, torch.device("cpu"))
    rule = AttentionRule(query=coords, key=coords)
    with pytest.raises(ValueError, match="split attention needs a whole training sequence"):
        _ = rule.split
    with pytest.raises(ValueError, match="flash_attn attention needs a whole training sequence"):
        rule.varlen(1)


def test_an_unknown_context_attention_is_rejected():
    coords = response_coords(CLEAN, 0, 4, 4, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"context_attention must be one of .* got 'diagonal'"):
        AttentionRule(query=coords, key=coords, context_attention="diagonal")
