"""An open corpus: its folder, its index, and the stored features that replace its images."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from echo_pl.data.store.corpus_folder import CorpusFolder
from echo_pl.data.store.corpus_index import CorpusIndex, Shard
from echo_pl.data.store.feature_store import FeatureReader
from echo_pl.data.store.shard_reader import IMAGE_SUFFIXES, RawSample, ShardError, read_samples
from echo_pl.data.store.study import StoredImages

Raw = tuple[RawSample, RawSample | None]
"""A study and its stored features, both undecoded."""


class Corpus:
    """One corpus. Its index is read at its first use.

    Args:
        folder: Where it is.
        name: Put before every key, with a ``-``; empty: keys stay as in the shards.
        features: Folder of stored vision features; None: the images.
        processing: How images become patches, which stored features must share.
    """

    def __init__(self, folder: CorpusFolder, *, name: str, features: Path | None, processing: Mapping[str, Any]) -> None:
        self.folder = folder
        self.name = name
        self._prefix = f"{name}-" if name else ""
        self._features_folder = features
        self._processing = dict(processing)

    def __str__(self) -> str:
        return f"{self.name} ({self.folder})" if self.name else str(self.folder)

    @cached_property
    def index(self) -> CorpusIndex:
        """Index of the corpus."""
        return self.folder.load_index()

    @cached_property
    def features(self) -> FeatureReader | None:
        """Its stored features.

        Raises:
            ValueError: If they are of another corpus or of other patches.
        """
        if self._features_folder is None:
            return None
        reader = FeatureReader(self._features_folder)
        reader.index.check(reader.folder, self.index.fingerprint, self._processing)
        return reader

    def shards(self, split: str) -> tuple[CorpusShard, ...]:
        """The shards of a split; none where the corpus has no such split."""
        return tuple(CorpusShard(corpus=self, split=split, shard=shard) for shard in self.index.splits.get(split, ()))

    def key(self, own: str) -> str:
        """A study's key among all corpora."""
        return f"{self._prefix}{own}"


@dataclass(frozen=True, kw_only=True)
class CorpusShard:
    """A shard and the corpus that it is of."""

    corpus: Corpus
    split: str
    shard: Shard

    def fetch_ahead(self) -> None:
        """Make it ready in the background."""
        self.corpus.folder.fetch_ahead(self.shard)

    def read(self, places: Collection[int]) -> Iterator[tuple[int, Raw]]:
        """Yield the samples at these places of the shard, in their order, undecoded, under their keys among all corpora.

        Raises:
            ShardError: If the shard is missing, damaged or hostile, or stored features are not of its studies.
            ValueError: If its checksum is not that of the index, or the cache has no room for it.
            OSError: If it cannot be fetched.
        """
        with self.corpus.folder.holding(self.shard) as folder:
            for place, sample, features in self._pairs(folder, places):
                yield place, (replace(sample, key=self.corpus.key(sample.key)), features)

    def studies(self) -> Iterator[RawSample]:
        """Yield every study with its images, undecoded, whether or not there are stored features.

        Raises:
            ValueError: As :meth:`read`.
            OSError: As :meth:`read`.
        """
        with self.corpus.folder.holding(self.shard) as folder:
            for _, sample in read_samples(folder, self.shard, range(self.shard.samples)):
                yield replace(sample, key=self.corpus.key(sample.key))

    def _pairs(self, folder: Path, places: Collection[int]) -> Iterator[tuple[int, RawSample, RawSample | None]]:
        reader = self.corpus.features
        if reader is None:
            for place, sample in read_samples(folder, self.shard, places):
                yield place, sample, None
            return
        samples = read_samples(folder, self.shard, places, passed_over=IMAGE_SUFFIXES)
        stored = reader.read(self.split, self.shard.name, places)
        for (place, sample), features in zip(samples, stored, strict=True):
            if features.key != sample.key:
                raise ShardError(
                    f"shard {self.shard.name} has study {sample.key} where the vision features in {reader.folder} are of "
                    f"{features.key}; make them again"
                )
            yield place, sample, features

    def decode_features(self, raw: RawSample | None) -> StoredImages | None:
        """Decode a study's stored features, where there are any.

        Raises:
            ValueError: If they cannot be read.
        """
        reader = self.corpus.features
        return None if reader is None or raw is None else reader.decode(raw)
