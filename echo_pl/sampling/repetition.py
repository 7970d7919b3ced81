"""Is the end of a report one phrase over and over? Batched; knows token ids only."""

from __future__ import annotations

import torch
from torch import Tensor

from echo_pl.sampling.config import LoopStop


def in_loop(tokens_AR: Tensor, stop: LoopStop) -> Tensor:
    """bool (A,): the last tokens of a row repeat one n-gram at least ``min_repeats`` times over ``min_tokens`` or more.

    >>> rows = torch.tensor([[7, 1, 2, 1, 2, 1, 2, 1, 2], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
    >>> in_loop(rows, LoopStop(max_period=2, min_repeats=3, min_tokens=6)).tolist()
    [True, False]
    """
    A, R = tokens_AR.shape
    looped = torch.zeros(A, dtype=torch.bool, device=tokens_AR.device)
    if not stop.enabled:
        return looped
    for period in range(1, stop.max_period + 1):
        stretch = max(stop.min_repeats * period, -(-stop.min_tokens // period) * period)
        if stretch <= R:
            tail = tokens_AR[:, R - stretch :]
            looped |= (tail[:, period:] == tail[:, :-period]).all(-1)
    return looped
