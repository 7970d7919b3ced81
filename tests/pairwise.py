"""Combinations of test parameters in which every pair of values occurs, instead of their whole product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any


def pairwise(*factors: Sequence[Any], valid: Callable[..., bool] = lambda *_: True) -> list[tuple[Any, ...]]:
    """Few of the valid combinations, with every pair of values of two factors that a valid combination has; the same each time."""
    whole = [c for c in product(*map(range, map(len, factors))) if valid(*(f[i] for f, i in zip(factors, c, strict=True)))]
    pairs = [set(combinations(enumerate(c), 2)) for c in whole]
    missing, chosen = set().union(*pairs), []
    while missing:
        best = max(range(len(whole)), key=lambda n: len(pairs[n] & missing))
        missing -= pairs[best]
        chosen.append(tuple(f[i] for f, i in zip(factors, whole[best], strict=True)))
    return chosen
