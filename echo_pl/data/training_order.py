"""The order of the training split as one rank sees it: which studies are in which of its batches, epoch by epoch.

Binds the pure functions of :mod:`echo_pl.data.order` to a corpus, to settings and to a place among the ranks; reads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from echo_pl.data.corpus_index import Shard
from echo_pl.data.order import EpochOrder, Places, group_by_length, shuffled_order, train_batches


@dataclass(frozen=True, kw_only=True)
class TrainingOrder:
    """Orders of the training split."""

    shards: Sequence[Shard]
    seed: int
    shuffle_buffer: int
    """How many places a study may move from its place in the shuffled shards."""
    length_window: int
    """Global batches whose studies are grouped by report length; 0: none."""
    limit: int | None
    """Only the first so many studies."""
    batch_size: int
    """Of one rank."""
    rank: int
    world_size: int

    def epoch(self, number: int) -> tuple[EpochOrder, list[Places]]:
        """One epoch's way through the shards, and this rank's batches along it."""
        order = shuffled_order(
            [shard.samples for shard in self.shards],
            seed=self.seed,
            epoch=number,
            buffer=self.shuffle_buffer,
            limit=self.limit,
        )
        places = order.places
        if self.length_window:
            places = group_by_length(
                places,
                np.concatenate([np.asarray(self.shards[shard].characters, dtype=np.int64) for shard in order.shards]),
                batch=self.batch_size * self.world_size,
                window=self.length_window,
                seed=self.seed,
                epoch=number,
            )
        return order, train_batches(places, batch_size=self.batch_size, rank=self.rank, world_size=self.world_size)

    def batches_of_an_epoch(self) -> int:
        """How many batches every rank has.

        Raises:
            ValueError: not one on every rank.
        """
        visited, batches = self.epoch(0)
        if not batches:
            raise ValueError(
                f"{len(visited.places)} training studies do not fill one batch of {self.batch_size} on "
                f"{self.world_size} rank(s); use a smaller batch_size or a larger corpus"
            )
        return len(batches)

    def __str__(self) -> str:
        """What decides the order, the same on every rank."""
        return (
            f"seed {self.seed}, shuffle_buffer {self.shuffle_buffer}, length_window {self.length_window}, "
            f"global batch {self.batch_size * self.world_size}, limit {self.limit}"
        )
