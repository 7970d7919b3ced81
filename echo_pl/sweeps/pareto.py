"""Cells of a sweep grouped over seeds: means with intervals, and the Pareto front of quality and speed.

An interval describes the variation of a score over training seeds, not over reports.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

Key = tuple[str, str, int]
"""Objective, variant, block size."""
FASTER = {"tps": True, "nfe": False}
"""True for the measures of speed that are better when larger."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One cell with its scores."""

    key: Key
    seed: int
    scores: Mapping[str, float]
    name: str = ""
    """Name of the cell."""
    base: str | None = None
    """Name of the AR model that it comes from; None: unknown."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Mean over seeds."""

    value: float
    low: float
    high: float
    """Student's interval; nan with one seed."""
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """All seeds of one objective and block size."""

    key: Key
    seeds: tuple[int, ...]
    means: Mapping[str, Mean]

    @property
    def label(self) -> str:
        """Name in tables and plots."""
        return label(self.key)


def label(key: Key) -> str:
    """Name of a group in tables and plots.

    >>> label(("ce", "", 8)), label(("ar", "for raw", 1))
    ('ce, L=8', 'ar (for raw)')
    """
    objective, variant, size = key
    block = "" if objective == "ar" else f", L={size}"
    return f"{objective}{block}" + (f" ({variant})" if variant else "")


def group(cells: Iterable[Measured], names: Sequence[str], level: float = 0.95) -> list[Group]:
    """Means of the named scores over seeds, by block size, then by name; a score that any seed lacks is left out.

    Raises:
        ValueError: two cells of one group have the same seed, or the level is not between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"the level of an interval must be between 0 and 1, got {level}")
    of: dict[Key, list[Measured]] = {}
    for cell in cells:
        of.setdefault(cell.key, []).append(cell)
    groups = []
    for key, same in sorted(of.items(), key=lambda item: (item[0][2], item[0])):
        seeds = tuple(sorted(cell.seed for cell in same))
        if len(set(seeds)) < len(seeds):
            raise ValueError(
                f"{key} has seed {statistics.mode(seeds)} more than once: two sweeps of one name with other settings; remove the "
                "runs that are not meant, or give the other sweep another sweep.name"
            )
        present = [name for name in names if all(name in cell.scores for cell in same)]
        means = {name: mean([cell.scores[name] for cell in same], level) for name in present}
        groups.append(Group(key=key, seeds=seeds, means=means))
    return groups


def mean(values: Sequence[float], level: float) -> Mean:
    """Mean and Student's t interval.

    >>> found = mean([1.0, 2.0, 3.0], 0.95)
    >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
    (2.0, -0.484, 4.484)
    """
    middle = statistics.fmean(values)
    if len(values) < 2:
        return Mean(value=middle, low=math.nan, high=math.nan, seeds=len(values))
    half = float(student_t.ppf(0.5 + level / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(value=middle, low=middle - half, high=middle + half, seeds=len(values))


def front(groups: Sequence[Group], quality: str, speed: str) -> list[Group]:
    """Groups that no other group beats in one mean without losing in the other, the fastest last.

    Args:
        groups: a group without one of the two scores is left out.
        quality: a score that is better when larger.
        speed: one of :data:`FASTER`.
    """
    sign = 1.0 if FASTER[speed] else -1.0
    places = {
        one.key: (sign * one.means[speed].value, one.means[quality].value)
        for one in groups
        if quality in one.means and speed in one.means
    }

    def is_beaten(one: tuple[float, float]) -> bool:
        return any(other != one and other[0] >= one[0] and other[1] >= one[1] for other in places.values())

    return sorted((one for one in groups if one.key in places and not is_beaten(places[one.key])), key=lambda one: places[one.key])
