"""Streams batches from shards: one pass over given batches of places, shared out to the workers of a loader.

With any number of workers the batches come in the same order, since worker w of W reads batches w, w + W, ... and a
DataLoader takes from its workers in turn. A worker reads its shards front to back and holds only its own samples that
are still to be visited. Knows places and files; the order itself comes from :mod:`echo_pl.data.order`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from echo_pl.data.corpus_index import Shard
from echo_pl.data.feature_store import FeatureReader
from echo_pl.data.order import EpochOrder, Places
from echo_pl.data.processor import LongResponseError, Sample
from echo_pl.data.shard_reader import IMAGE_SUFFIXES, RawSample, ShardError, decode_study, read_samples
from echo_pl.data.study import Study
from echo_pl.structs import Batch

logger = logging.getLogger(__name__)

OnBad = Literal["error", "skip"]
Raw = tuple[RawSample, RawSample | None]
"""A study and its stored features, both undecoded."""


class BatchStream(IterableDataset[Batch]):
    """One pass over some batches.

    Args:
        folder: The corpus folder.
        split: Which one.
        shards: The shards of the split, as the index lists them.
        order: The epoch's way through them.
        batches: Places of each batch, in the order in which they are wanted.
        process: From a study to a sample.
        collate: From samples to a batch.
        on_bad_sample: ``skip`` leaves out, with a warning, a sample that cannot be decoded; its batch is then smaller.
            A damaged shard is always an error.
        on_long_response: The same for a response with too many tokens.
        features: Stored vision features, read in the place of images; None: the images.
        cache: Finished samples by key, kept from pass to pass; None: every pass decodes anew.
        cache_size: Most samples the cache may hold.
    """

    def __init__(
        self,
        *,
        folder: Path,
        split: str,
        shards: Sequence[Shard],
        order: EpochOrder,
        batches: Sequence[Places],
        process: Callable[[Study], Sample],
        collate: Callable[[Sequence[Sample]], Batch],
        on_bad_sample: OnBad = "error",
        on_long_response: OnBad = "error",
        features: FeatureReader | None = None,
        cache: dict[str, Sample] | None = None,
        cache_size: int = 0,
    ) -> None:
        super().__init__()
        self._folder = folder
        self._split = split
        self._features = features
        self._shards = [shards[number] for number in order.shards]
        self._starts = order.starts
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
        waiting: dict[int, Raw] = {}
        reader = self._read(mine)
        for places in mine:
            while not all(place in waiting for place in places.tolist()):
                place, raw = next(reader)
                waiting[place] = raw
            decoded = (self._decode(waiting.pop(place)) for place in places.tolist())
            samples = [sample for sample in decoded if sample is not None]
            if not samples:
                raise ValueError(
                    f"not one sample of a batch of {len(places)} could be used, {self.skipped} were skipped so far; "
                    f"look into the corpus in {self._folder}"
                )
            yield self._collate(samples)

    def _read(self, batches: Sequence[Places]) -> Iterator[tuple[int, Raw]]:
        """Yield the raw samples of these batches as they stand in the stream; shards without any are not opened."""
        places = np.sort(np.concatenate(batches)) if batches else np.empty(0, dtype=np.int64)
        cuts = np.searchsorted(places, self._starts)
        for number, shard in enumerate(self._shards):
            here = places[cuts[number] : cuts[number + 1]] - self._starts[number]
            if len(here):
                for place, raw in self._read_shard(shard, here.tolist()):
                    yield int(self._starts[number]) + place, raw

    def _read_shard(self, shard: Shard, places: list[int]) -> Iterator[tuple[int, Raw]]:
        if self._features is None:
            for place, sample in read_samples(self._folder, shard, places):
                yield place, (sample, None)
            return
        samples = read_samples(self._folder, shard, places, passed_over=IMAGE_SUFFIXES)
        stored = self._features.read(self._split, shard.name, places)
        for (place, sample), features in zip(samples, stored, strict=True):
            if features.key != sample.key:
                raise ShardError(
                    f"shard {shard.name} has study {sample.key} where the vision features in {self._features.folder} are of "
                    f"{features.key}; make them anew"
                )
            yield place, (sample, features)

    def _decode(self, pair: Raw) -> Sample | None:
        raw, features = pair
        if (known := self._cache.get(raw.key)) is not None:
            return known
        try:
            stored = None if self._features is None or features is None else self._features.decode(features)
            sample = self._process(decode_study(raw, stored))
            if len(self._cache) < self._cache_size:
                self._cache[raw.key] = sample
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
