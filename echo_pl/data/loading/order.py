"""In which order an epoch visits its studies, and who takes which: pure functions of seed, epoch, counts, lengths and global batch.

Nothing here depends on the number of ranks or workers but the last step, in which the global batches, the same for all,
are divided. So a run on two ranks sees what a run on one sees, and a place in the epoch is one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """One epoch's way through a split."""

    shards: tuple[int, ...]
    """Shard numbers in the order in which they are read."""
    starts: Places
    """Place of the first sample of each of these shards in the stream; one more entry, the total."""
    places: Places
    """Places in the stream, in the order in which the studies are visited."""
    streams: tuple[int, ...] = (0,)
    """Which of these shards are the first of a stream that is read by itself: one stream, or one for each corpus of a mixture."""


def fixed_order(counts: Sequence[int], limit: int | None = None, *, streams: tuple[int, ...] = (0,)) -> EpochOrder:
    """Visit every study as it stands in the shards, or the first ``limit`` of each stream, of which one is the rule."""
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    cuts = [*starts[list(streams)].tolist(), int(starts[-1])]
    visited = [np.arange(a, b if limit is None else min(b, a + limit), dtype=np.int64) for a, b in pairwise(cuts)]
    return EpochOrder(shards=tuple(range(len(counts))), starts=starts, places=np.concatenate(visited), streams=streams)


def in_turns(order: EpochOrder) -> Places:
    """The places of a fixed order, dealt out: the first of each stream, the second of each, and so on."""
    streams = np.split(order.places, np.searchsorted(order.places, order.starts[list(order.streams[1:])]))
    turn = np.concatenate([np.arange(len(stream)) for stream in streams])
    return order.places[np.argsort(turn, kind="stable")]


def shuffled_order(counts: Sequence[int], *, seed: int, epoch: int, buffer: int, limit: int | None = None) -> EpochOrder:
    """Shuffle the shards, then the studies, each by at most ``buffer`` places, so that reading goes on in order.

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


def group_by_length(places: Places, lengths: Places, *, batch: int, window: int, seed: int, epoch: int) -> Places:
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


def train_batches(places: Places, *, batch_size: int, rank: int, world_size: int) -> list[Places]:
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


def eval_batches(places: Places, *, batch_size: int, rank: int, world_size: int) -> list[Places]:
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
