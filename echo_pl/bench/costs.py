"""What a longer context and a larger vocabulary cost a forward, beside what attention and head account for. Knows rows only.

A context should cost the attention over it, a vocabulary the head on the rows that need it and the choice among its logits, and
neither anything else: the difference between two forwards that were timed, beside the same difference of the parts that the
breakdown found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
_PLACE = ("method", "kv_cache", "block_size")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A difference between two forwards, in milliseconds."""

    model: str
    method: str
    block_size: int
    what: str
    """``context``, or ``vocabulary at context P``."""
    smaller: int
    larger: int
    forward: float
    """Timed, without the profiler."""
    accounted: float
    """Of the parts that should explain it: attention; head and commit."""


def costs(breakdowns: Sequence[Row], sizes: Mapping[str, Mapping[str, Any]]) -> Iterator[Cost]:
    """All that the breakdowns of a benchmark tell.

    Args:
        breakdowns: of ``decode.json``.
        sizes: of its models, by name.
    """
    timed = [row for row in breakdowns if row["ms_per_forward"] is not None]
    for row in timed:
        for other in timed:
            if any(row[name] != other[name] for name in _PLACE):
                continue
            here, there = sizes[row["model"]], sizes[other["model"]]
            if row["model"] == other["model"] and row["context"] < other["context"]:
                if other["context"] == max(r["context"] for r in timed if r["model"] == row["model"]):
                    yield _cost(row, other, "context", row["context"], other["context"], ("attention",))
            elif row["context"] == other["context"] and _differ_in_vocabulary(here, there):
                what = f"vocabulary at context {row['context']}"
                yield _cost(row, other, what, here["vocabulary"], there["vocabulary"], ("head", "commit"))


def _differ_in_vocabulary(smaller: Mapping[str, Any], larger: Mapping[str, Any]) -> bool:
    others = {name: value for name, value in larger.items() if name != "vocabulary"}
    return smaller["vocabulary"] < larger["vocabulary"] and all(smaller[name] == value for name, value in others.items())


def _cost(row: Row, other: Row, what: str, smaller: int, larger: int, parts: tuple[str, ...]) -> Cost:
    return Cost(
        model=other["model"],
        method=row["method"],
        block_size=row["block_size"],
        what=what,
        smaller=smaller,
        larger=larger,
        forward=other["ms_per_forward"] - row["ms_per_forward"],
        accounted=sum(other["ms"][part] - row["ms"][part] for part in parts),
    )
