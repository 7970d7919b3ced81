"""The order of an epoch: deterministic, complete, bounded, and the same on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from echo_pl.data.loading.order import eval_batches, fixed_order, group_by_length, shuffled_order, train_batches

COUNTS = [30, 30, 30, 7]


def test_deterministic_by_seed_and_epoch():
    def places(seed: int, epoch: int) -> list[int]:
        return shuffled_order(COUNTS, seed=seed, epoch=epoch, buffer=20).places.tolist()

    assert places(1, 0) == places(1, 0)
    assert places(1, 0) != places(1, 1)
    assert places(1, 0) != places(2, 0)


@pytest.mark.parametrize("buffer", [0, 5, 40, 10_000])
def test_every_study_once_and_moved_by_the_buffer_at_most(buffer):
    order = shuffled_order(COUNTS, seed=0, epoch=3, buffer=buffer)
    assert sorted(order.places) == list(range(97))
    moved = np.abs(order.places - np.arange(97))
    assert moved.max() <= max(buffer, 0)
    assert (buffer == 0) == (moved.max() == 0)
    assert sorted(order.shards) == [0, 1, 2, 3]
    assert order.starts.tolist() == [0, *np.cumsum([COUNTS[s] for s in order.shards])]


def test_limit_keeps_the_first_studies_of_the_split():
    for epoch in range(3):
        order = shuffled_order(COUNTS, seed=0, epoch=epoch, buffer=10, limit=40)
        shard = np.searchsorted(order.starts, order.places, side="right") - 1
        originals = np.array(order.shards)[shard] * 30 + order.places - order.starts[shard]
        assert sorted(originals) == list(range(40))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_same_global_batches(world_size):
    places = shuffled_order(COUNTS, seed=0, epoch=0, buffer=50).places
    whole = train_batches(places, batch_size=8, rank=0, world_size=1)
    parts = [train_batches(places, batch_size=8 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [len(part) for part in parts] == [len(whole)] * world_size == [12] * world_size
    for number, batch in enumerate(whole):
        assert np.concatenate([part[number] for part in parts]).tolist() == batch.tolist()


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8, 9, 97])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("world_size", [1, 2])
def test_evaluation_leaves_nothing_out(count, batch_size, world_size):
    places = fixed_order([count]).places
    parts = [eval_batches(places, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    assert all(len(batch) for part in parts for batch in part)
    assert sorted(np.concatenate([batch for part in parts for batch in part])) == list(range(count))
    if world_size == 1:
        assert np.concatenate(parts[0]).tolist() == list(range(count))
        assert max(len(batch) for batch in parts[0]) <= batch_size


def test_fewer_studies_than_ranks():
    with pytest.raises(ValueError, match="3 studies cannot be shared out to 4 ranks"):
        eval_batches(fixed_order([3]).places, batch_size=2, rank=0, world_size=4)


def grouped(places: np.ndarray, lengths: np.ndarray, window: int, epoch: int = 0) -> np.ndarray:
    return group_by_length(places, lengths, batch=4, window=window, seed=0, epoch=epoch)


def test_grouping_by_length_keeps_every_study_in_its_window():
    lengths = np.random.default_rng(5).integers(40, 90, size=97)
    places = shuffled_order(COUNTS, seed=0, epoch=0, buffer=50).places
    result = grouped(places, lengths, window=6)
    assert len(result) == 96  # whole batches only
    for first in range(0, 96, 24):
        assert sorted(result[first : first + 24]) == sorted(places[first : first + 24])


def test_grouped_batches_are_runs_of_the_sorted_window_in_shuffled_order():
    lengths = np.random.default_rng(5).permutation(97)
    result = grouped(fixed_order(COUNTS).places, lengths, window=100)
    batches = lengths[result].reshape(-1, 4)
    runs = np.sort(lengths[:96]).reshape(-1, 4)
    assert sorted(map(tuple, np.sort(batches, axis=1))) == list(map(tuple, runs))
    assert not np.array_equal(np.sort(batches, axis=1), runs)  # not from the shortest to the longest
    assert not np.array_equal(np.sort(batches, axis=1), batches)  # nor within a batch, where ranks take their parts


def test_grouping_is_deterministic_by_epoch():
    lengths = np.random.default_rng(5).integers(40, 90, size=97)
    places = fixed_order(COUNTS).places
    assert np.array_equal(grouped(places, lengths, 6), grouped(places, lengths, 6))
    assert not np.array_equal(grouped(places, lengths, 6), grouped(places, lengths, 6, epoch=1))


def test_grouping_fewer_studies_than_a_batch_is_nothing():
    assert len(grouped(np.arange(3), np.ones(3), window=2)) == 0
