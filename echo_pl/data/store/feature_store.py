"""Stored vision features: shards beside a corpus's own, with what a frozen vision tower made of every study's images.

One sample per study, ``{key}.safetensors`` with ``features`` (image tokens, E) and ``grid_thw`` (images, 3), in the order of the
corpus's shards and under their names. An index, written last, records their corpus, image processing and
vision tower.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from echo_pl.data.store.corpus_index import Shard, check_local
from echo_pl.data.store.shard_reader import RawSample, ShardError, read_samples
from echo_pl.data.store.study import StoredImages
from echo_pl.data.store.webdataset_secure import TarWriter
from echo_pl.io.atomic import atomic_path, write_text_atomic

SCHEMA_VERSION = 1
INDEX_NAME = "features.json"
_UNFINISHED = "unfinished.json"
SUFFIX = "safetensors"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_AGAIN = "make them again with echo-pl corpus features"


@dataclass(frozen=True, kw_only=True)
class FeatureIndex:
    """``features.json``: what a folder of stored features is of."""

    corpus_fingerprint: str
    processing: Mapping[str, Any]
    """Settings that determined the patches of an image."""
    vision_fingerprint: str
    """Fingerprint of the tower's weights."""
    precision: str
    """Precision in which the tower computed."""
    dtype: str
    """Type in which its output is stored."""
    width: int
    """E."""
    splits: Mapping[str, tuple[Shard, ...]]

    def save(self, folder: Path, name: str = INDEX_NAME) -> None:
        """Write the index, in one step."""
        write_text_atomic(folder / name, json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1))

    @classmethod
    def load(cls, folder: Path, name: str = INDEX_NAME) -> FeatureIndex:
        """Read the index of a folder of features.

        Raises:
            FileNotFoundError: it holds none.
            ValueError: the index is damaged or of another schema.
        """
        path = check_local(folder) / name
        if not path.is_file():
            raise FileNotFoundError(f"no {INDEX_NAME} in {folder}: stored vision features are {_AGAIN.removeprefix('make them ')}")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            version = record.pop("schema_version")
            if version != SCHEMA_VERSION:
                raise ValueError(f"schema version {version!r}, this program reads {SCHEMA_VERSION}")
            splits = {split: tuple(Shard(**shard) for shard in shards) for split, shards in record.pop("splits").items()}
            return cls(splits=splits, **record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} cannot be read ({error}); {_AGAIN}") from error

    def check(self, folder: Path, corpus_fingerprint: str, processing: Mapping[str, Any]) -> None:
        """Check that the features belong to this corpus and these patches.

        Raises:
            ValueError: they are.
        """
        for name, stored, current in (
            ("corpus", self.corpus_fingerprint, corpus_fingerprint),
            ("image processing", dict(self.processing), dict(processing)),
        ):
            if stored != current:
                raise ValueError(
                    f"the vision features in {folder} are of another {name}: {stored}, this run has {current}; {_AGAIN}"
                )


def nothing_of(width: int, dtype: str) -> StoredImages:
    """Placeholder for a study that cannot be read, if such studies are skipped."""
    return StoredImages(features=torch.zeros(0, width, dtype=DTYPES[dtype]), grid_thw=torch.zeros(0, 3, dtype=torch.long))


class FeatureWriter:
    """Writes stored features shard by shard; what is there of an interrupted run is kept.

    Args:
        folder: created if need be.
        identity: the index, as yet without shards.

    Raises:
        ValueError: the folder holds features of something else, or foreign files.
    """

    def __init__(self, folder: Path, identity: FeatureIndex) -> None:
        self.folder = folder
        self.index = identity
        self.complete = (folder / INDEX_NAME).is_file()
        name = INDEX_NAME if self.complete else _UNFINISHED
        if (folder / name).is_file():
            found = FeatureIndex.load(folder, name)
            if replace(found, splits={}) != identity:
                raise ValueError(f"{folder} already holds vision features of something else; choose another folder or delete it")
            self.index = found
        elif folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no {INDEX_NAME}; choose another folder")

    def has(self, split: str, name: str) -> bool:
        """Return True if this shard is written already."""
        return any(shard.name == name for shard in self.index.splits.get(split, ()))

    def write(self, split: str, name: str, samples: Iterable[tuple[str, StoredImages]]) -> None:
        """Write one shard.

        Raises:
            OSError: the disk is full; what was finished before stays.
        """
        path = self.folder / name
        count = 0
        try:
            with atomic_path(path) as partial, partial.open("wb") as file, TarWriter(file, mtime=0) as writer:
                for key, images in samples:
                    content = {"features": images.features.contiguous(), "grid_thw": images.grid_thw.contiguous()}
                    writer.write({"__key__": key, SUFFIX: safetensors.torch.save(content)})
                    count += 1
        except OSError as error:
            raise OSError(error.errno, f"cannot write vision features to {path}: {error.strerror}; free some space") from error
        with path.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        shard = Shard(name=name, samples=count, bytes=path.stat().st_size, sha256=digest)
        splits = {**self.index.splits, split: (*self.index.splits.get(split, ()), shard)}
        self.index = replace(self.index, splits=splits)
        self.index.save(self.folder, _UNFINISHED)

    def finish(self) -> None:
        """Say that all shards are there."""
        self.index.save(self.folder)
        (self.folder / _UNFINISHED).unlink(missing_ok=True)


class FeatureReader:
    """Reads stored features beside the samples that they belong to.

    Args:
        folder: with the shards and :data:`INDEX_NAME`.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: it is damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.index = FeatureIndex.load(self.folder)

    def read(self, split: str, name: str, wanted: Collection[int]) -> Iterator[RawSample]:
        """Yield the features of the wanted samples of the corpus's shard of this name, undecoded.

        Raises:
            ShardError: there is no such shard of features, or it is damaged.
        """
        shard = next((shard for shard in self.index.splits.get(split, ()) if shard.name == name), None)
        if shard is None:
            raise ShardError(f"{self.folder} has no vision features of shard {name} ({split}); {_AGAIN}")
        for _, raw in read_samples(self.folder, shard, wanted, suffixes=(SUFFIX,)):
            yield raw

    def decode(self, raw: RawSample) -> StoredImages:
        """Read one study's features.

        Raises:
            ValueError: they cannot be read, have another width or type than the index, or there are none: see
                :func:`nothing_of`.
        """
        try:
            content = safetensors.torch.load(raw.fields[SUFFIX])
            stored = StoredImages(features=content["features"], grid_thw=content["grid_thw"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"the vision features of study {raw.key} cannot be read: {error!r}; {_AGAIN}") from error
        if not len(stored.grid_thw):
            raise ValueError(f"study {raw.key} could not be read when vision features were stored")
        wanted = (self.index.width, DTYPES.get(self.index.dtype))
        found = (stored.features.shape[-1], stored.features.dtype)
        if stored.features.dim() != 2 or found != wanted:
            raise ValueError(f"the vision features of study {raw.key} are {found}, the index says {wanted}; {_AGAIN}")
        return stored
