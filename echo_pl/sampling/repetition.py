"""Repetition loops at the end of reports.

Shapes: A samples, R tokens so far, N periods that fit, W compared tokens.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from echo_pl.sampling.config import LoopStop

_STRIDE = 16


def is_loop_check_due(before: int, after: int, limit: int) -> bool:
    """Return True once every 16 tokens and at the limit, for reports that grew from ``before`` to ``after`` tokens.

    The check takes some percent of a small model's time per block, and a loop needs several tokens to show.
    """
    return after // _STRIDE > before // _STRIDE or after >= limit


def in_loop(tokens_AR: Tensor, stop: LoopStop) -> Tensor:
    """Return True (A,) for rows whose last tokens repeat one n-gram ``min_repeats`` times or more, over ``min_tokens`` or more.

    >>> rows = torch.tensor([[7, 1, 2, 1, 2, 1, 2, 1, 2], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
    >>> in_loop(rows, LoopStop(max_period=2, min_repeats=3, min_tokens=6)).tolist()
    [True, False]
    """
    tables = _tables(stop, tokens_AR.shape[1], tokens_AR.device) if stop.enabled else None
    if tables is None:
        return torch.zeros(len(tokens_AR), dtype=torch.bool, device=tokens_AR.device)
    place_W, before_NW, beyond_NW = tables
    same_ANW = tokens_AR[:, None, place_W] == tokens_AR[:, before_NW]
    return (same_ANW | beyond_NW).all(-1).any(-1)


@lru_cache(maxsize=1024)
def _tables(stop: LoopStop, tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor] | None:
    """Compared places of all periods, cached by length.

    Returns:
        (W,) places from the end, (N, W) the places one period before them, and (N, W) True where a period compares nothing.
        None: no period fits.
    """
    periods = range(1, stop.max_period + 1)
    stretch = {p: max(stop.min_repeats * p, -(-stop.min_tokens // p) * p) for p in periods}
    fitting = [p for p in periods if stretch[p] <= tokens]
    if not fitting:
        return None
    compared_N = torch.tensor([stretch[p] - p for p in fitting])
    place_W = tokens - 1 - torch.arange(int(compared_N.max()))
    before_NW = (place_W - torch.tensor(fitting)[:, None]).clamp(min=0)
    beyond_NW = torch.arange(len(place_W)) >= compared_N[:, None]
    return place_W.to(device), before_NW.to(device), beyond_NW.to(device)
