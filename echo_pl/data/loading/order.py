"""Order of an epoch over one corpus or several: pure functions of seed, epoch, counts, lengths and global batch.

Only the last step depends on the number of ranks: it divides the global batches, which are the same for all. So a run on two ranks
sees the studies of a run on one, and a position in the epoch is one number.

An epoch of a mixture has as many visits as its corpora have studies together. A corpus of weight w gets its share of them and
continues in the next epoch where it stopped: visit v of a corpus of n studies is index v mod n of its pass v div n, and every pass
has a shuffle of its own. So each pass visits every study once, also where a corpus repeats within an epoch or does not end in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """One epoch's way through a split."""

    shards: tuple[int, ...]
    """Shard numbers in the order in which they are read."""
    starts: Indices
    """Place of the first sample of each of these shards in the stream; one more entry, the total."""
    places: Indices
    """Places in the stream, in the order in which the studies are visited."""
    streams: tuple[int, ...] = (0,)
    """Indices of the shards that begin a stream: one stream, or one for each corpus of a mixture."""


def fixed_order(counts: Sequence[int], limit: int | None = None, *, streams: tuple[int, ...] = (0,)) -> EpochOrder:
    """Visit every study in the order of the shards, or the first ``limit`` of each stream, of which one is the rule."""
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    cuts = [*starts[list(streams)].tolist(), int(starts[-1])]
    visited = [np.arange(a, b if limit is None else min(b, a + limit), dtype=np.int64) for a, b in pairwise(cuts)]
    return EpochOrder(shards=tuple(range(len(counts))), starts=starts, places=np.concatenate(visited), streams=streams)


def in_turns(order: EpochOrder) -> Indices:
    """The places of a fixed order, dealt out: the first of each stream, the second of each, and so on."""
    streams = np.split(order.places, np.searchsorted(order.places, order.starts[list(order.streams[1:])]))
    turn = np.concatenate([np.arange(len(stream)) for stream in streams])
    return order.places[np.argsort(turn, kind="stable")]


def shuffled_order(counts: Sequence[int], *, seed: int, epoch: int, buffer: int, limit: int | None = None) -> EpochOrder:
    """Shuffle the shards, then the studies, each by at most ``buffer`` places, so that shards are read in order.

    Args:
        counts: Studies in each shard.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        buffer: How far a study may move; bounds the samples that a reader has to hold.
        limit: Only the first so many studies of the split take part.
    """
    rng = np.random.default_rng([seed, epoch])
    shards = rng.permutation(len(counts))
    firsts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    starts = np.concatenate([[0], np.cumsum(np.asarray(counts)[shards])]).astype(np.int64)
    places = np.arange(starts[-1], dtype=np.int64)
    if limit is not None:
        in_split = np.concatenate([np.arange(firsts[s], firsts[s] + counts[s]) for s in shards])
        places = places[in_split < limit]
    moved = np.arange(len(places)) + rng.random(len(places)) * buffer
    return EpochOrder(shards=tuple(int(s) for s in shards), starts=starts, places=places[np.argsort(moved, kind="stable")])


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
    rng = np.random.default_rng([seed, epoch, 2])  # 2: another stream of random numbers than the functions above
    parts, streams, times = [], [], []
    shards: list[int] = []
    starts: list[Indices] = []
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
    """Visits ``first`` to ``end`` of one corpus, its passes one after the other."""
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


def group_by_length(places: Indices, lengths: Indices, *, batch: int, window: int, seed: int, epoch: int) -> Indices:
    """Rearrange an order so that the studies of a global batch are of like length: less padding, the same studies.

    Within each window of global batches the studies are sorted by length, cut into batches, and the batches shuffled, and the
    studies in each. What does not fill a global batch is left out before sorting, so that it is not always the longest.

    Args:
        places: The order of the epoch.
        lengths: Length of the study at each place of the stream.
        batch: Studies of all ranks in one step.
        window: Global batches that are sorted together; bounds the samples that a reader has to hold.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
    """
    rng = np.random.default_rng([seed, epoch, 1])  # 1: another stream than that of shuffled_order
    rows = places[: len(places) // batch * batch].reshape(-1, batch)
    grouped = []
    for first in range(0, len(rows), window):
        inside = rows[first : first + window].ravel()
        by_length = inside[np.argsort(lengths[inside], kind="stable")].reshape(-1, batch)
        grouped.append(rng.permuted(rng.permutation(by_length), axis=1))
    return np.concatenate(grouped).ravel() if grouped else rows.ravel()


def train_batches(places: Indices, *, batch_size: int, rank: int, world_size: int) -> list[Indices]:
    """Divide the visited places into this rank's batches; what does not fill a global batch is left out.

    Args:
        places: The order of the epoch.
        batch_size: Studies of one rank in one step.
        rank: Which part of each global batch.
        world_size: How many parts there are.
    """
    batches = len(places) // (batch_size * world_size)
    grid = places[: batches * batch_size * world_size].reshape(batches, world_size, batch_size)
    return list(grid[:, rank])


def eval_batches(places: Indices, *, batch_size: int, rank: int, world_size: int) -> list[Indices]:
    """Divide the places into this rank's batches, leaving nothing out and nothing empty.

    Every rank has the same number of batches: the last global batch is shared out, and one too small for that joins
    the one before it.

    Raises:
        ValueError: If there are fewer studies than ranks.
    """
    if len(places) < world_size:
        raise ValueError(f"{len(places)} studies cannot be shared out to {world_size} ranks; raise the limit of the split")
    step = batch_size * world_size
    cuts = list(range(step, len(places), step))
    if cuts and len(places) - cuts[-1] < world_size:
        cuts.pop()
    return [np.array_split(batch, world_size)[rank] for batch in np.split(places, cuts)]
