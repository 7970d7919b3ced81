"""Bootstrap intervals of scores and the paired randomisation test of two runs, both over reports.

Both use the rows of :mod:`echo_pl.metrics.counted`: a resample is a weighting of reports, so many resamples are one product of
matrices, and a corpus score (BLEU, a micro F1) is computed again in each. They describe the variation over reports, not over
training seeds.

Shapes: N reports, K counts, S resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Figures = Callable[[Tensor], dict[str, Tensor]]
"""From sums of rows (..., K) to named scores (...)."""
_ELEMENTS = 2**22
"""Largest number of weights held at once."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One score of two runs over the same reports."""

    difference: float
    """First run minus second."""
    low: float
    high: float
    """Bootstrap interval of the difference, reports resampled in pairs."""
    p: float
    """Two-sided p of the randomisation test: the share of exchanges between the runs that give a difference as large."""
    exact: bool
    """True if all exchanges were computed instead of random ones."""


def bootstrap(
    rows_NK: Tensor, figures: Figures, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Percentile bootstrap over reports (Efron and Tibshirani, 1993, chapter 13).

    Args:
        rows_NK: counts of each report.
        figures: from sums to scores.
        resamples: number of draws of N reports with replacement.
        level: level of the interval.
        seed: seed of the draws; the same seed draws the same reports for every metric.

    Raises:
        ValueError: no reports, or a bad number.
    """
    _check(rows_NK, resamples, level)
    sums = torch.cat([weights @ rows_NK for weights in _resamples(len(rows_NK), resamples, seed)])
    whole = figures(rows_NK.sum(0))
    drawn = figures(sums)
    return {name: Interval(value=float(whole[name]), **_bounds(drawn[name], level)) for name in whole}


def compare(
    first_NK: Tensor,
    second_NK: Tensor,
    figures: Figures,
    *,
    rounds: int = 10_000,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Paired randomisation test (Noreen, 1989): without a difference between the runs, exchanging their reports changes nothing.

    If 2^N <= ``rounds``, all exchanges are computed and p is exact; otherwise p = (hits + 1) / (rounds + 1). ``resamples`` and
    ``level`` are of the interval of the difference; see :func:`bootstrap`.

    Args:
        first_NK: rows of the first run.
        second_NK: rows of the second, reports in the same order.
        figures: from sums to scores.
        rounds: number of random exchanges.

    Raises:
        ValueError: the runs have different reports, or none.
    """
    if first_NK.shape != second_NK.shape:
        raise ValueError(f"runs can only be compared on the same reports: got {len(first_NK)} and {len(second_NK)}")
    _check(first_NK, rounds, level)
    _check(first_NK, resamples, level)
    reports = len(first_NK)
    exact = reports < 63 and 2**reports <= rounds
    first, second, change = first_NK.sum(0), second_NK.sum(0), second_NK - first_NK
    observed = _differences(figures, first, second)
    hits = dict.fromkeys(observed, 0)
    for exchanged in _all_exchanges(reports) if exact else _exchanges(reports, rounds, seed):
        moved = exchanged @ change
        for name, values in _differences(figures, first + moved, second - moved).items():
            # An exchange without a value counts as a hit, so that p cannot become too small.
            hits[name] += int((values.isnan() | (values.abs() >= observed[name].abs() * (1 - 1e-9) - 1e-12)).sum())
    drawn = [_differences(figures, weights @ first_NK, weights @ second_NK) for weights in _resamples(reports, resamples, seed)]
    share = {name: count / 2**reports if exact else (count + 1) / (rounds + 1) for name, count in hits.items()}
    return {
        name: Comparison(
            difference=float(value),
            p=share[name] if value.isfinite() else float("nan"),
            exact=exact,
            **_bounds(torch.cat([part[name] for part in drawn]), level),
        )
        for name, value in observed.items()
    }


def holm(values: dict[str, float]) -> dict[str, float]:
    """Correct p-values for their number (Holm, 1979); a nan is kept and does not count.

    >>> holm({"bleu": 0.01, "rouge": 0.04, "cider": float("nan")})
    {'bleu': 0.02, 'rouge': 0.04, 'cider': nan}
    """
    known = sorted((p, name) for name, p in values.items() if p == p)
    corrected, largest = dict(values), 0.0
    for place, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - place)))
        corrected[name] = largest
    return corrected


def _differences(figures: Figures, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    other = figures(second)
    return {name: value - other[name] for name, value in figures(first).items()}


def _bounds(values_S: Tensor, level: float) -> dict[str, float]:
    tail = (1 - level) / 2
    known = values_S[values_S.isfinite()]
    if not len(known):
        return {"low": float("nan"), "high": float("nan")}
    low, high = torch.quantile(known, torch.tensor([tail, 1 - tail], dtype=known.dtype)).tolist()
    return {"low": low, "high": high}


def _resamples(reports: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """Number of times that each report is drawn, (part of S, N) at a time."""
    generator = torch.Generator().manual_seed(seed)
    for size in _chunks(reports, resamples):
        drawn = torch.randint(reports, (size, reports), generator=generator)
        yield torch.zeros(size, reports, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(size, reports, dtype=torch.float64))


def _exchanges(reports: int, rounds: int, seed: int) -> Iterator[Tensor]:
    """1 for the reports that the two runs exchange, (part of S, N) at a time."""
    generator = torch.Generator().manual_seed(seed)
    for size in _chunks(reports, rounds):
        yield torch.randint(2, (size, reports), generator=generator).double()


def _all_exchanges(reports: int) -> Iterator[Tensor]:
    yield (torch.arange(2**reports)[:, None] >> torch.arange(reports) & 1).double()


def _chunks(reports: int, total: int) -> Iterator[int]:
    size = max(1, _ELEMENTS // reports)
    for start in range(0, total, size):
        yield min(size, total - start)


def _check(rows_NK: Tensor, resamples: int, level: float) -> None:
    if not len(rows_NK):
        raise ValueError("there are no reports to resample")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"need at least 1 resample and a level in (0, 1), got {resamples} and {level}")
