"""Which studies of a training split say what another one says already (METHOD.md 1, step 3).

The first in the order stays. A study is left out if a study that stays, or a held-out one, has a vector within the threshold and
the same signature: negations, sides and numbers, which a cosine hardly sees. Only studies of one signature are compared, in blocks.
Knows keys, texts and vectors; nothing of files.
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
"""Far above the rounding of a float32 product: what comes nearer to the threshold is computed exactly."""
_CHUNK: Final = 8192
_CRITICAL: Final = re.compile(
    r"(?P<no>\b(?:no|not|non|nor|without|absent|absence|free|negative|never)\b|[无未不否])"
    r"|(?P<left>\bleft\b|左)|(?P<right>\bright\b|右)|(?P<both>\b(?:bilateral|bilaterally|both)\b|双|两侧)"
    r"|(?P<number>\d+(?:[.,]\d+)*)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A study that is left out."""

    key: str
    of: str
    """The first study that it duplicates, held-out ones before those of the training split."""
    held_out: bool
    """That one is held out: to keep this one would show it in training."""
    cosine: float


def critical_words(text: str) -> str:
    """Negations, sides and numbers of a text, sorted: what two reports that say the same must share.

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
    """Yield the studies to leave out of a training split, in their order. Held-out studies are never left out.

    Texts are read in blocks and not kept. Of a study that stays, E float16 numbers and its key are.

    Args:
        train: keys and reports, in the order in which the first of several stays.
        held_out: keys and reports of all other splits.
        embedder: makes the vectors.
        threshold: smallest cosine of a duplicate; the embedder's own where it is None.
        signature: what must be equal besides. Findings that a labeller reads out of a report are a sharper one than the default.
        block: studies that are embedded and compared at once; of the same vectors the result is the same with any.

    Raises:
        ValueError: a threshold outside (0, 1], a block below 1, or a key that is there twice.
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
    """The studies of one signature that stay: held-out ones, then those of the training split, in their order."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._keys: list[str] = []
        self._held_out = 0
        self._chunks: list[Vectors] = []

    def hold_out(self, keys: Sequence[str], vectors: Vectors) -> None:
        """Take these in as they are."""
        self._held_out += len(keys)
        self._add(keys, vectors)

    def sift(self, keys: Sequence[str], vectors: Vectors) -> list[tuple[int, Duplicate]]:
        """Take in those that stay; return the others by their place."""
        earlier = self._first_alike(vectors)
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

    def _first_alike(self, vectors: Vectors) -> dict[int, tuple[int, float]]:
        """Row -> the first study here that is like it, and the cosine; rows that are like none are not there."""
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
    """Which pairs (R, C) may be within the limit, by float32 arithmetic."""
    near: npt.NDArray[np.bool_] = rows_RE.astype(np.float32) @ others_CE.astype(np.float32).T >= limit - _MARGIN
    return near


def _first_of(others_CE: Vectors, one_E: npt.NDArray[np.float16], limit: float) -> tuple[int, float] | None:
    """Place and cosine of the first row within the limit of one vector; the same on every machine and with every block.

    A float16 is a multiple of 2**-24, so a product of two is one of 2**-48; as the rows are of length 1, float64 adds those without
    rounding, in whatever order.
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
            raise ValueError(f"study {key} is there twice, or in two splits")
        seen.add(key)


def _blocks(
    held_out: Iterable[tuple[str, str]], train: Iterable[tuple[str, str]], size: int
) -> Iterator[tuple[list[tuple[str, str]], bool]]:
    """Blocks of held-out studies, then blocks of the others; whether a block is held out."""
    for studies, is_held_out in ((iter(held_out), True), (iter(train), False)):
        while block := list(islice(studies, size)):
            yield block, is_held_out
