"""The order of an epoch over several corpora: a pure function of seed, epoch, counts and weights.

An epoch of a mixture has as many visits as its corpora have studies together. A corpus of weight w gets its share of them, and goes
on in the next epoch where it stopped: visit v of a corpus of n studies is place v mod n of its pass v div n, and every pass is
shuffled anew. So in a pass every study is visited once, however often a corpus begins anew within an epoch, or does not end in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from echo_pl.data.loading.order import EpochOrder, Places, shuffled_order


def visits_of_an_epoch(sizes: Sequence[int], weights: Sequence[float]) -> tuple[int, ...]:
    """Visits of each corpus in one epoch: the sum of the sizes, shared out by weight, rounded by largest remainder.

    >>> visits_of_an_epoch([60, 40], [1.0, 3.0])
    (25, 75)
    """
    exact = np.asarray(weights, dtype=np.float64) * (sum(sizes) / sum(weights))
    visits = np.floor(exact).astype(np.int64)
    largest = np.argsort(visits - exact, kind="stable")
    visits[largest[: sum(sizes) - int(visits.sum())]] += 1
    return tuple(visits.tolist())


def mixed_order(
    counts: Sequence[Sequence[int]], visits: Sequence[int], *, seed: int, epoch: int, buffer: int, limit: int | None = None
) -> EpochOrder:
    """Go through several corpora at once.

    In the first k visits of an epoch each corpus has its share of k, to within one visit.

    Args:
        counts: Studies in each shard, corpus by corpus.
        visits: Visits of each corpus in an epoch.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        buffer: How far a study may move in the stream of its corpus.
        limit: Only the first so many studies of each corpus take part.

    Returns:
        Shards are numbered through all corpora in their order; a stream for each corpus.
    """
    rng = np.random.default_rng([seed, epoch, 2])  # 2: another stream than those of echo_pl.data.loading.order
    parts, streams, times = [], [], []
    shards: list[int] = []
    starts: list[Places] = []
    total = first_shard = 0
    for own, share in zip(counts, visits, strict=True):
        part = _stretch(own, epoch * share, (epoch + 1) * share, seed=seed, buffer=buffer, limit=limit)
        streams.append(len(shards))
        shards += [first_shard + shard for shard in part.shards]
        starts.append(part.starts[:-1] + total)
        parts.append(part.places + total)
        times.append((np.arange(share) + rng.random(share)) / share)
        total += int(part.starts[-1])
        first_shard += len(own)
    places = np.concatenate(parts)[np.argsort(np.concatenate(times), kind="stable")]
    ends = np.asarray([total], dtype=np.int64)
    return EpochOrder(shards=tuple(shards), starts=np.concatenate([*starts, ends]), places=places, streams=tuple(streams))


def _stretch(counts: Sequence[int], first: int, end: int, *, seed: int, buffer: int, limit: int | None) -> EpochOrder:
    """Visits ``first`` to ``end`` of one corpus, its passes one behind the other."""
    size = min(sum(counts), sum(counts) if limit is None else limit)
    shards: list[int] = []
    starts, places = [], []
    total = 0
    for number in range(first // size, (end - 1) // size + 1):
        one = shuffled_order(counts, seed=seed, epoch=number, buffer=buffer, limit=limit)
        shards += one.shards
        starts.append(one.starts[:-1] + total)
        places.append(one.places[max(first - number * size, 0) : end - number * size] + total)
        total += int(one.starts[-1])
    ends = np.asarray([total], dtype=np.int64)
    return EpochOrder(shards=tuple(shards), starts=np.concatenate([*starts, ends]), places=np.concatenate(places))
