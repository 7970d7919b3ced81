"""Near-duplicate reports of a training split (docs/explain/data.md).

The first of several duplicates stays. A study is a duplicate if a study that stays, or a held-out
one, has a vector within the threshold and the same signature: negations, sides and numbers, to
which a cosine is almost blind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from echo_pl.reports.embeddings import Embedder, Vectors

_MARGIN: Final = 1e-3
"""Far above float32 rounding; cosines nearer to the threshold are computed exactly."""
_CHUNK: Final = 8192
_CRITICAL: Final = re.compile(
    r"(?P<no>\b(?:no|not|non|nor|without|absent|absence|free|negative|never)\b|[无未不否])"
    r"|(?P<left>\bleft\b|左)|(?P<right>\bright\b|右)|(?P<both>\b(?:bilateral|bilaterally|both)\b|双|两侧)"
    r"|(?P<number>\d+(?:[.,]\d+)*)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A study to omit."""

    key: str
    of: str
    """The first study that it duplicates; held-out studies come first."""
    held_out: bool
    """``of`` is held out."""
    cosine: float


def critical_words(text: str) -> str:
    """Return negations, sides and numbers of a text, sorted; duplicates share them.

    >>> critical_words("No effusion. 4 mm nodule in the left apex, not calcified.")
    '4 left no no'
    """
    found = ((one.group(), str(one.lastgroup)) for one in _CRITICAL.finditer(text))
    return " ".join(sorted(word if kind == "number" else kind for word, kind in found))


def find_near_duplicates(
    train: Iterable[tuple[str, str]],
    held_out: Iterable[tuple[str, str]],
    embedder: Embedder,
    *,
    threshold: float | None = None,
    signature: Callable[[str], str] = critical_words,
    block: int = 2048,
) -> Iterator[Duplicate]:
    """Yield the studies to omit from a training split, in their order.

    Memory: E float16 numbers and a key for each study that stays.

    Args:
        train: keys and reports in order.
        held_out: keys and reports of all other splits.
        embedder: makes the vectors.
        threshold: smallest cosine of a duplicate; None: the embedder's own.
        signature: must be equal for duplicates. Labels of findings make a sharper one than the
            default.
        block: studies that are embedded and compared at once; it does not change the result.

    Raises:
        ValueError: a threshold outside (0, 1], a block below 1, or a repeated key.
    """
    limit = embedder.threshold if threshold is None else threshold
    if not 0 < limit <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {limit}")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    groups: dict[str, _Group] = {}
    seen: set[str] = set()
    for studies, is_held_out in _blocks(held_out, train, block):
        keys = [key for key, _ in studies]
        _check_new(keys, seen)
        vectors = embedder.embed([text for _, text in studies])
        places: dict[str, list[int]] = {}
        for place, (_, text) in enumerate(studies):
            places.setdefault(signature(text), []).append(place)
        found: dict[int, Duplicate] = {}
        for name, rows in places.items():
            group = groups.setdefault(name, _Group(limit))
            if is_held_out:
                group.hold_out([keys[row] for row in rows], vectors[rows])
            else:
                found |= {rows[place]: one for place, one in group.sift([keys[row] for row in rows], vectors[rows])}
        yield from (found[place] for place in sorted(found))


class _Group:
    """The studies of one signature that stay: held-out ones first, then in order."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._keys: list[str] = []
        self._held_out = 0
        self._chunks: list[Vectors] = []

    def hold_out(self, keys: Sequence[str], vectors: Vectors) -> None:
        """Add held-out studies."""
        self._held_out += len(keys)
        self._add(keys, vectors)

    def sift(self, keys: Sequence[str], vectors: Vectors) -> list[tuple[int, Duplicate]]:
        """Add the studies that stay; return the duplicates with their rows."""
        earlier = self._first_within_limit(vectors)
        left_out = [
            (row, Duplicate(key=keys[row], of=self._keys[first], held_out=first < self._held_out, cosine=cosine))
            for row, (first, cosine) in earlier.items()
        ]
        rows = [row for row in range(len(keys)) if row not in earlier]
        stays: list[int] = []
        near = _near(vectors[rows], vectors[rows], self._limit)
        for number, row in enumerate(rows):
            candidates = [place for place in stays if near[number, place]]
            found = _first_of(vectors[[rows[place] for place in candidates]], vectors[row], self._limit)
            if found is None:
                stays.append(number)
            else:
                of = keys[rows[candidates[found[0]]]]
                left_out.append((row, Duplicate(key=keys[row], of=of, held_out=False, cosine=found[1])))
        kept = [rows[number] for number in stays]
        self._add([keys[row] for row in kept], vectors[kept])
        return left_out

    def _add(self, keys: Sequence[str], vectors: Vectors) -> None:
        if not keys:
            return
        self._keys += keys
        if self._chunks and len(self._chunks[-1]) < _CHUNK:
            self._chunks[-1] = np.concatenate([self._chunks[-1], vectors])
        else:
            self._chunks.append(vectors.copy())

    def _first_within_limit(self, vectors: Vectors) -> dict[int, tuple[int, float]]:
        """Return row -> (first study within the limit, cosine), for the rows that have one."""
        firsts: dict[int, tuple[int, float]] = {}
        start = 0
        for chunk in self._chunks:
            rows = [row for row in range(len(vectors)) if row not in firsts]
            near = _near(vectors[rows], chunk, self._limit)
            for number in np.flatnonzero(near.any(axis=1)):
                places = np.flatnonzero(near[number])
                if (found := _first_of(chunk[places], vectors[rows[number]], self._limit)) is not None:
                    firsts[rows[number]] = (start + int(places[found[0]]), found[1])
            start += len(chunk)
        return firsts


def _near(rows_RE: Vectors, others_CE: Vectors, limit: float) -> npt.NDArray[np.bool_]:
    """Return a mask (R, C) of the pairs that may be within the limit, in float32."""
    near: npt.NDArray[np.bool_] = rows_RE.astype(np.float32) @ others_CE.astype(np.float32).T >= limit - _MARGIN
    return near


def _first_of(others_CE: Vectors, one_E: npt.NDArray[np.float16], limit: float) -> tuple[int, float] | None:
    """Return position and cosine of the first row within the limit, on every machine alike.

    A float16 is a multiple of 2**-24, so a product of two is one of 2**-48. As the rows have length
    1, float64 adds these without rounding, in any order.
    """
    if not len(others_CE):
        return None
    others, one = others_CE.astype(np.float64), one_E.astype(np.float64)
    lengths = np.sqrt((others * others).sum(1) * (one @ one))
    cosines = np.divide(others @ one, lengths, out=np.zeros(len(others)), where=lengths > 0)
    alike = np.flatnonzero(cosines >= limit)
    return (int(alike[0]), min(1.0, float(cosines[alike[0]]))) if len(alike) else None


def _check_new(keys: Sequence[str], seen: set[str]) -> None:
    for key in keys:
        if key in seen:
            raise ValueError(f"study {key} is repeated, or in two splits; keys must be unique")
        seen.add(key)


def _blocks(
    held_out: Iterable[tuple[str, str]], train: Iterable[tuple[str, str]], size: int
) -> Iterator[tuple[list[tuple[str, str]], bool]]:
    """Yield blocks of held-out studies with True, then blocks of the others with False."""
    for studies, is_held_out in ((iter(held_out), True), (iter(train), False)):
        while block := list(islice(studies, size)):
            yield block, is_held_out
