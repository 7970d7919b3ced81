"""The order of the training split as one rank sees it: which studies are in which of its batches, epoch by epoch.

Binds the pure functions of :mod:`echo_pl.data.loading.order`
to one corpus or several, to settings and to a place among the ranks; reads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from echo_pl.data.loading.order import (
    EpochOrder,
    Indices,
    group_by_length,
    mixed_order,
    shuffled_order,
    train_batches,
    visits_of_an_epoch,
)
from echo_pl.data.store.corpus_index import Shard


@dataclass(frozen=True, kw_only=True)
class TrainingOrder:
    """Orders of the training split."""

    corpora: Sequence[Sequence[Shard]]
    """The shards of each corpus."""
    names: Sequence[str]
    """Names of the corpora, for messages."""
    weights: Sequence[float] | None
    """Share of each corpus in a mixture, up to a factor; None: one corpus, by itself."""
    seed: int
    shuffle_buffer: int
    """Most positions by which a study may move in the shuffled shards."""
    length_window: int
    """Global batches whose studies are grouped by report length; 0: none."""
    limit: int | None
    """Only the first so many studies of each corpus."""
    batch_size: int
    """Studies of one rank in one step."""
    rank: int
    world_size: int

    def epoch(self, number: int) -> tuple[EpochOrder, list[Indices]]:
        """One epoch's way through the shards, and this rank's batches along it."""
        order = self._one(number) if self.weights is None else self._mixed(number)
        places = order.places
        if self.length_window:
            shards = [shard for corpus in self.corpora for shard in corpus]
            places = group_by_length(
                places,
                np.concatenate([np.asarray(shards[shard].characters, dtype=np.int64) for shard in order.shards]),
                batch=self.batch_size * self.world_size,
                window=self.length_window,
                seed=self.seed,
                epoch=number,
            )
        return order, train_batches(places, batch_size=self.batch_size, rank=self.rank, world_size=self.world_size)

    @property
    def visits(self) -> tuple[int, ...]:
        """Visits of each corpus in one epoch."""
        sizes = [sum(counts) if self.limit is None else min(sum(counts), self.limit) for counts in self._counts]
        return tuple(sizes) if self.weights is None else visits_of_an_epoch(sizes, self.weights)

    @property
    def _counts(self) -> list[list[int]]:
        return [[shard.samples for shard in shards] for shards in self.corpora]

    def _one(self, number: int) -> EpochOrder:
        (counts,) = self._counts
        return shuffled_order(counts, seed=self.seed, epoch=number, buffer=self.shuffle_buffer, limit=self.limit)

    def _mixed(self, number: int) -> EpochOrder:
        return mixed_order(self._counts, self.visits, seed=self.seed, epoch=number, buffer=self.shuffle_buffer, limit=self.limit)

    def batches_of_an_epoch(self) -> int:
        """Return the number of batches of every rank.

        Raises:
            ValueError: not one on every rank, or a corpus without a visit.
        """
        if 0 in self.visits:
            raise ValueError(
                f"corpus {self.names[self.visits.index(0)]} has so small a weight that no study of it is in an epoch of "
                f"{sum(self.visits)}"
            )
        visited, batches = self.epoch(0)
        if not batches:
            raise ValueError(
                f"{len(visited.places)} training studies do not fill one batch of {self.batch_size} on "
                f"{self.world_size} rank(s); use a smaller batch_size or a larger corpus"
            )
        return len(batches)

    def __str__(self) -> str:
        """Settings that determine the order, the same on every rank."""
        mixture = "" if self.weights is None else f", {'+'.join(map(str, self.visits))} visits of each corpus"
        return (
            f"seed {self.seed}, shuffle_buffer {self.shuffle_buffer}, length_window {self.length_window}, "
            f"global batch {self.batch_size * self.world_size}, limit {self.limit}{mixture}"
        )
