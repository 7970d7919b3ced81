"""Detection of repetition loops at the end of a report, against a plain search."""

from __future__ import annotations

import torch

from echo_pl.sampling.config import LoopStop
from echo_pl.sampling.repetition import in_loop

STOP = LoopStop(max_period=5, min_repeats=3, min_tokens=8)


def plain(tokens: list[int], stop: LoopStop) -> bool:
    """Is there an n-gram whose repetitions, often enough and long enough, are the end?"""
    for period in range(1, stop.max_period + 1):
        repeats = max(stop.min_repeats, -(-stop.min_tokens // period))
        phrase = tokens[-period:]
        if len(tokens) >= repeats * period and tokens[-repeats * period :] == phrase * repeats:
            return True
    return False


def test_loops_are_those_of_a_plain_search():
    generator = torch.Generator().manual_seed(0)
    found = 0
    for _ in range(300):
        period, repeats = (int(torch.randint(1, n, (1,), generator=generator)) for n in (8, 7))
        head = torch.randint(0, 3, (int(torch.randint(0, 6, (1,), generator=generator)),), generator=generator).tolist()
        phrase = torch.randint(0, 3, (period,), generator=generator).tolist()
        tokens = head + phrase * repeats
        expected = plain(tokens, STOP)
        assert in_loop(torch.tensor([tokens]), STOP).tolist() == [expected], tokens
        found += expected
    assert 30 < found < 270


def test_a_short_period_needs_more_repeats():
    stop = LoopStop(max_period=4, min_repeats=4, min_tokens=16)
    assert in_loop(torch.tensor([[7] * 15]), stop).tolist() == [False]
    assert in_loop(torch.tensor([[7] * 16]), stop).tolist() == [True]


def test_only_the_end_counts():
    tokens = [1, 2] * 10 + [5, 6, 7]
    assert in_loop(torch.tensor([tokens]), STOP).tolist() == [False]


def test_it_can_be_switched_off():
    assert in_loop(torch.tensor([[7] * 40]), LoopStop(enabled=False)).tolist() == [False]
