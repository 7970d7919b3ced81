"""Streams batches from shards: one pass over given batches of places, shared out to the workers of a loader.

With any number of workers the batches come in the same order, since worker w of W reads batches w, w + W, ... and a
DataLoader takes from its workers in turn. A worker reads the shards of each stream (one, or one for each corpus of a mixture)
front to back and holds only its own samples that are still to be visited. Reading, decoding of images, tokenisation and
collation all happen in :meth:`BatchStream.__iter__`, so with workers none of them is in the training process.
Knows places; the order itself comes from :mod:`echo_pl.data.loading.order`.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from echo_pl.data.loading.order import EpochOrder, Indices
from echo_pl.data.loading.processor import LongResponseError, Sample
from echo_pl.data.store.corpus import CorpusShard, Raw
from echo_pl.data.store.shard_reader import ShardError, decode_study
from echo_pl.data.store.study import Study
from echo_pl.structs import Batch

logger = logging.getLogger(__name__)

OnBad = Literal["error", "skip"]
Found = tuple[CorpusShard, Raw]


class BatchStream(IterableDataset[Batch]):
    """One pass over some batches.

    Args:
        shards: The shards of the split, corpus by corpus as their indices list them.
        order: The epoch's way through them.
        batches: Places of each batch, in the order in which they are wanted.
        process: From a study to a sample.
        collate: From samples to a batch.
        on_bad_sample: ``skip`` leaves out, with a warning, a sample that cannot be decoded; its batch is then smaller.
            A damaged shard is always an error.
        on_long_response: The same for a response with too many tokens.
        cache: Finished samples by key, kept from pass to pass; None: every pass decodes again.
        cache_size: Most samples the cache may hold.
    """

    def __init__(
        self,
        *,
        shards: Sequence[CorpusShard],
        order: EpochOrder,
        batches: Sequence[Indices],
        process: Callable[[Study], Sample],
        collate: Callable[[Sequence[Sample]], Batch],
        on_bad_sample: OnBad = "error",
        on_long_response: OnBad = "error",
        cache: dict[str, Sample] | None = None,
        cache_size: int = 0,
    ) -> None:
        super().__init__()
        self._shards = [shards[number] for number in order.shards]
        self._starts = order.starts
        self._streams = order.streams
        self._batches = batches
        self._process = process
        self._collate = collate
        self._skip_bad = on_bad_sample == "skip"
        self._skip_long = on_long_response == "skip"
        self._cache = {} if cache is None else cache
        self._cache_size = 0 if cache is None else cache_size
        self.skipped = 0
        """Samples left out so far, by this process."""

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        mine = self._batches if worker is None else self._batches[worker.id :: worker.num_workers]
        waiting: dict[int, Found] = {}
        readers = [self._read(mine, stream) for stream in range(len(self._streams))]
        first_places = [int(self._starts[first]) for first in self._streams]
        for places in mine:
            for wanted in places.tolist():
                reader = readers[bisect_right(first_places, wanted) - 1]
                while wanted not in waiting:
                    place, found = next(reader)
                    waiting[place] = found
            decoded = (self._decode(*waiting.pop(place)) for place in places.tolist())
            samples = [sample for sample in decoded if sample is not None]
            if not samples:
                raise ValueError(
                    f"not one sample of a batch of {len(places)} could be used, {self.skipped} were skipped so far; "
                    f"look into the corpus in {self._shards[0].corpus}"
                )
            yield self._collate(samples)

    def _read(self, batches: Sequence[Indices], stream: int) -> Iterator[tuple[int, Found]]:
        """Yield the raw samples of these batches in the order of one stream; shards without any are not opened."""
        places = np.sort(np.concatenate(batches)) if batches else np.empty(0, dtype=np.int64)
        cuts = np.searchsorted(places, self._starts)
        end = (*self._streams, len(self._shards))[stream + 1]
        needed = [number for number in range(self._streams[stream], end) if cuts[number] < cuts[number + 1]]
        for number, following in zip(needed, [*needed[1:], None], strict=True):
            shard, start = self._shards[number], self._starts[number]
            reading = shard.read((places[cuts[number] : cuts[number + 1]] - start).tolist())
            for position, (place, raw) in enumerate(reading):
                if position == 0 and following is not None:  # now that this one is there
                    self._shards[following].fetch_ahead()
                yield int(start) + place, (shard, raw)

    def _decode(self, shard: CorpusShard, raw: Raw) -> Sample | None:
        study, features = raw
        if (known := self._cache.get(study.key)) is not None:
            return known
        try:
            sample = self._process(decode_study(study, shard.decode_features(features)))
            if len(self._cache) < self._cache_size:
                self._cache[study.key] = sample
            return sample
        except ShardError:
            raise
        except LongResponseError as error:
            if not self._skip_long:
                raise
            self._note_skipped(error)
        except ValueError as error:
            if not self._skip_bad:
                raise ValueError(f"{error}; repair it, or set on_bad_sample=skip") from error
            self._note_skipped(error)
        return None

    def _note_skipped(self, error: ValueError) -> None:
        self.skipped += 1
        logger.warning("skipped a sample (%d so far): %s", self.skipped, error)
