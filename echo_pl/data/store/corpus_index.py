"""``index.json``: what a corpus folder holds. Written last, so that a folder with an index is a complete corpus.

An index is data from
outside like any other: what it names must be plain files of its own folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from echo_pl.io.atomic import write_text_atomic

SCHEMA_VERSION = 1
INDEX_NAME = "index.json"
Options = Mapping[str, str | int | float | bool | None]
_PLAIN = re.compile(r"\w[\w.-]*", re.ASCII)


def check_local(path: Path | str) -> Path:
    """Return a path to local storage.

    Raises:
        ValueError: If it is a URL or a command of any kind (``pipe:``, ``http:``, ``s3:``).
    """
    text = str(path)
    scheme = text.split("/", 1)[0]
    if ":" in scheme and len(scheme) > 2:
        raise ValueError(f"here a local or mounted folder is needed, it is never from a URL or a command: {text!r}")
    return Path(path)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar file of a corpus."""

    name: str
    samples: int
    bytes: int
    sha256: str
    characters: tuple[int, ...] = ()
    """Length of each study's normalized report; empty in an index that was made without."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "characters", tuple(self.characters))  # a list when it comes from JSON
        if Path(self.name).name != self.name or ":" in self.name or not self.name.endswith(".tar"):
            raise ValueError(f"a shard must be a plain *.tar file beside its index, got {self.name!r}")
        if self.samples < 1 or self.bytes < 1:
            raise ValueError(f"shard {self.name} is empty: {self.samples} samples in {self.bytes} bytes")
        if self.characters and len(self.characters) != self.samples:
            raise ValueError(f"shard {self.name} has {self.samples} samples but the lengths of {len(self.characters)} reports")


@dataclass(frozen=True, kw_only=True)
class AttachedFile:
    """A file of a corpus that is no shard: one of its tokenizer."""

    name: str
    """Relative to the corpus folder: ``tokenizer/tokenizer.json``."""
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        if len(parts) != 2 or not all(_PLAIN.fullmatch(part) for part in parts):
            raise ValueError(f"an attached file must be folder/file, both plain names, got {self.name!r}")
        if self.bytes < 1:
            raise ValueError(f"the attached file {self.name} is empty")


@dataclass(frozen=True, kw_only=True)
class CorpusIndex:
    """Identity of a corpus and the shards of its samples."""

    corpus: str
    """Name of the reader or generator that made it, and of its judge."""
    options: Options
    """Everything that decided what the studies are."""
    labels: tuple[str, ...]
    splits: Mapping[str, tuple[Shard, ...]]
    recipe: str
    """Hash of corpus, options and counts, known before the first study is made."""
    files: tuple[AttachedFile, ...] = ()
    """The tokenizer's, without which a remote corpus has none; empty in an index that was made without."""

    @property
    def fingerprint(self) -> str:
        """Hash of the recipe and of every byte of every shard."""
        parts = [
            self.recipe,
            *(f"{split}/{s.name}/{s.sha256}" for split in sorted(self.splits) for s in self.splits[split]),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def count(self, split: str) -> int:
        """Number of studies in a split."""
        return sum(shard.samples for shard in self.shards(split))

    def shards(self, split: str) -> tuple[Shard, ...]:
        """Return the shards of a split.

        Raises:
            ValueError: If the corpus has no such split.
        """
        if not self.splits.get(split):
            raise ValueError(f"the corpus has no split {split!r}, only {sorted(self.splits)}")
        return self.splits[split]

    def save(self, folder: Path) -> None:
        """Write the index, in one step."""
        record = {"schema_version": SCHEMA_VERSION, "fingerprint": self.fingerprint, **asdict(self)}
        record["checksum"] = record_checksum(record)
        write_text_atomic(folder / INDEX_NAME, json.dumps(record, indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path | str) -> CorpusIndex:
        """Read the index of a corpus folder.

        Raises:
            FileNotFoundError: If the folder holds no complete corpus.
            ValueError: If the index is damaged, of another schema, or names anything but plain local files.
        """
        path = check_local(folder) / INDEX_NAME
        if not path.is_file():
            raise FileNotFoundError(f"no {INDEX_NAME} in {folder}; run `echo-pl corpus make synthetic --out {folder}`")
        return cls.parse(path.read_bytes(), path)

    @classmethod
    def parse(cls, content: bytes, where: Path | str) -> CorpusIndex:
        """Read an index from its bytes.

        Args:
            content: Of the file.
            where: It was read from, for messages.

        Raises:
            ValueError: If it is damaged, of another schema, or names anything but plain files.
        """
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is damaged ({error}); delete the folder and make the corpus again") from error
        version = record.get("schema_version") if isinstance(record, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(f"{where} has schema version {version!r}, this program reads {SCHEMA_VERSION}; make the corpus again")
        try:
            return cls._from_record(record)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} is damaged ({error!r}); delete the folder and make the corpus again") from error

    @classmethod
    def _from_record(cls, record: Mapping[str, Any]) -> CorpusIndex:
        return cls(
            corpus=str(record["corpus"]),
            options=dict(record["options"]),
            labels=tuple(str(label) for label in record["labels"]),
            splits={str(k): tuple(Shard(**shard) for shard in shards) for k, shards in record["splits"].items()},
            recipe=str(record["recipe"]),
            files=tuple(AttachedFile(**file) for file in record.get("files", ())),
        )


def attach_folder(folder: Path, name: str, index: CorpusIndex) -> CorpusIndex:
    """Put every file of a folder inside the corpus folder on the index, so that it can be fetched and checked from elsewhere.

    Args:
        folder: The corpus folder, to which the new index is written.
        name: Of the folder inside it; what was attached of it before is replaced.
        index: As it was.

    Returns:
        The new index; the old one where nothing has changed.
    """
    kept = tuple(file for file in index.files if not file.name.startswith(f"{name}/"))
    found = tuple(
        AttachedFile(name=f"{name}/{path.name}", bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted((folder / name).iterdir())
    )
    if kept + found == index.files:
        return index
    changed = replace(index, files=kept + found)
    changed.save(folder)
    return changed


def record_checksum(record: Mapping[str, Any]) -> str:
    """Hash of the content of an index file without the hash itself."""
    content = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def corpus_recipe(corpus: str, options: Options, counts: Mapping[str, int], shard_size: int) -> str:
    """Hash of everything that decides what a corpus will be."""
    record = [SCHEMA_VERSION, corpus, dict(options), dict(counts), shard_size]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
