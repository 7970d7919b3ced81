"""Step 6: shards, each from a fixed slice of its split, so that its bytes depend neither on the process nor on the time.

Images are opened here, one study at a time. Beside each shard a JSON file describes its contents.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from echo_pl.data.images.images import ImageError, load_image
from echo_pl.data.loading.order import Indices
from echo_pl.data.loading.request import GENERAL
from echo_pl.data.pipeline.entries import Entry, EntryFiles, LeftOut, read_json
from echo_pl.data.pipeline.general import FILE_NUMBER
from echo_pl.data.readers.reader import loggable_name
from echo_pl.data.store.corpus_index import Shard
from echo_pl.data.store.shard_writer import encode_study
from echo_pl.data.store.study import Study
from echo_pl.data.store.webdataset_secure import TarWriter
from echo_pl.io.atomic import atomic_file, write_json
from echo_pl.io.stop_signals import check_stop
from echo_pl.reports.regions import SECTIONS
from echo_pl.reports.report import RawReport
from echo_pl.structs import ReportText

STATEMENTS: Final = "statements"
"""Key of a study's ``meta``: ``[[section, characters, imputed], ...]`` of the findings, in order."""
LOST_IMAGES: Final = "lost_images"
"""Key of a study's ``meta``: number of images that the dataset names and that are not in the shard."""
RESERVED: Final = frozenset({"corpus", "impression", "kind", "language", LOST_IMAGES, "patient", "prompt", STATEMENTS, "view"})
"""Keys of ``meta`` that the pipeline writes: a dataset's own value of such a name is stored as ``source_<name>``."""


@dataclass(frozen=True, kw_only=True)
class ShardSlice:
    """Contents of one shard."""

    split: str
    number: int
    places: tuple[tuple[int, int], ...]
    """(number of the work file, offset in it) of each study."""

    @property
    def name(self) -> str:
        """File name of the shard."""
        return f"{self.split}-{self.number:06d}.tar"


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """Description of one finished shard."""

    split: str
    shard: Shard | None
    """None, without a file, if no study of the slice was usable."""
    left_out: tuple[LeftOut, ...]
    counts: Mapping[str, Mapping[str, int]]
    """``studies``, ``languages``, ``imputed``, ``labels``, ``images``, ``redacted``, ``dropped``, ``notes`` by name."""


def shard_slices(split: str, places: Indices, general: Indices, *, size: int, seed: int) -> Iterator[ShardSlice]:
    """Shuffle the studies of a split and general samples, and divide them into shards."""
    everything = np.concatenate([places, general])
    order = np.random.default_rng([seed, 2]).permutation(len(everything))
    for number, start in enumerate(range(0, len(order), size)):
        chosen = everything[order[start : start + size]].tolist()
        yield ShardSlice(split=split, number=number, places=tuple((file, offset) for file, offset in chosen))


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Task of writing one shard and its description, in any process.

    Raises:
        ValueError: If an image file has changed since the source was listed.
        OSError: If the disk is full.
    """

    entries: EntryFiles
    general: EntryFiles
    folder: Path
    """Folder to write to."""
    corpus: str
    max_pixels: int
    anonymous: bool
    """Replace keys by numbers, and omit patients and the dataset's own notes."""

    def __call__(self, piece: ShardSlice) -> int:
        """Write one shard; return the number of studies of its slice."""
        left_out: list[LeftOut] = []
        counts: dict[str, Counter[str]] = {}
        characters: list[int] = []
        path = self.folder / piece.name
        with atomic_file(path) as file, TarWriter(file, mtime=0) as writer:
            for entry in self._read(piece):
                images, views, errors = self._open(entry)
                if not images:
                    detail = "; ".join(one.detail for one in errors)
                    left_out.append(entry.left_out("reject", "images", errors[0].reason, detail))
                    continue
                left_out += (entry.left_out("image", "images", one.reason, one.detail) for one in errors)
                study = self._study(entry, images, views)
                writer.write(encode_study(study))
                characters.append(len(study.normalized.findings) + len(study.normalized.impression))
                _count(counts, entry, study)
        shard = _describe(path, tuple(characters))
        record = {
            "shard": None if shard is None else asdict(shard),
            "left_out": [asdict(one) for one in left_out],
            "counts": {name: dict(sorted(some.items())) for name, some in sorted(counts.items())},
        }
        write_json(path.with_suffix(".json"), record)
        return len(piece.places)

    def is_done(self, piece: ShardSlice) -> bool:
        """Return True if the shard is finished."""
        return (self.folder / piece.name).with_suffix(".json").is_file()

    def written(self, piece: ShardSlice) -> WrittenShard:
        """Load the description of a finished shard."""
        record = read_json((self.folder / piece.name).with_suffix(".json"))
        return WrittenShard(
            split=piece.split,
            shard=None if record["shard"] is None else Shard(**record["shard"]),
            left_out=tuple(LeftOut(**one) for one in record["left_out"]),
            counts=record["counts"],
        )

    def _read(self, piece: ShardSlice) -> Iterator[Entry]:
        for number, offset in piece.places:
            check_stop()
            # nearly every study of a shard is in another file: too many to keep open
            entry = self.general.read_at(0, offset) if number == FILE_NUMBER else self.entries.read_at(number, offset)
            assert isinstance(entry, Entry)  # places are those of studies
            yield entry

    def _study(self, entry: Entry, images: Sequence[Image.Image], views: Sequence[str]) -> Study:
        source = entry.study
        original = _text(source.report)
        return Study(
            key=f"{self.corpus}-{entry.place:07d}" if self.anonymous and entry.normalized is not None else source.key,
            images=tuple(images),
            normalized=original if entry.normalized is None else entry.normalized.text,
            raw=None if entry.normalized is None else original,
            labels=source.labels,
            meta=self._meta(entry, views),
        )

    def _open(self, entry: Entry) -> tuple[list[Image.Image], list[str], list[ImageError]]:
        """Images of a study with their views, and the errors of those that cannot be opened."""
        images, views, errors = list[Image.Image](), list[str](), list[ImageError]()
        for image, size in zip(entry.study.images, entry.sizes, strict=True):
            if not image.path.is_file() or os.stat(image.path).st_size != size:
                raise ValueError(
                    f"an image of entry {entry.place} has changed or gone since the source was listed; check that the whole source "
                    "exists, then run again; to use it as it is now, delete the work folder first"
                )
            try:
                images.append(load_image(image.path, self.max_pixels, root=image.root).image)
                views.append(image.view)
            except ImageError as error:
                errors.append(ImageError(error.reason, f"{loggable_name(image.path.name)}: {error.detail}"))
        return images, views, errors

    def _meta(self, entry: Entry, views: Sequence[str]) -> dict[str, str]:
        source, report = entry.study, entry.normalized
        if report is None:
            return {"corpus": self.corpus, **source.meta}
        own = {f"source_{name}" if name in RESERVED else name: value for name, value in source.meta.items()}
        meta = {} if self.anonymous else {"patient": source.patient, **own}
        if any(views):
            meta["view"] = "|".join(views)
        if lost := len(source.images) + len(source.lost) - len(views):
            meta[LOST_IMAGES] = str(lost)
        if report.impression_imputed:
            meta["impression"] = "imputed"
        ordered = [one for section in SECTIONS for one in report.statements if one.section == section]
        spans = [[one.section, len(one.text), one.imputed] for one in ordered]
        return {**meta, "corpus": self.corpus, "language": report.language, STATEMENTS: json.dumps(spans, separators=(",", ":"))}


def _text(report: RawReport) -> ReportText:
    return ReportText(findings=report.findings, impression=report.impression)


def _describe(path: Path, characters: tuple[int, ...]) -> Shard | None:
    if not characters:
        path.unlink()
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(name=path.name, samples=len(characters), bytes=path.stat().st_size, sha256=digest, characters=characters)


def _count(counts: dict[str, Counter[str]], entry: Entry, study: Study) -> None:
    """Add one study to the counts of its shard."""
    report = entry.normalized
    found: dict[str, Mapping[str, int]] = {
        "images": {"images": len(study.images)},
        "studies": {GENERAL if report is None else "reports": 1},
    }
    if report is not None:
        found["languages"] = {report.language: 1}
        found["imputed"] = dict.fromkeys(report.imputed, 1)
        found["labels"] = dict.fromkeys(study.labels, 1)
        found["dropped"] = report.dropped
        found["redacted"] = entry.redacted
        notes = {
            "impression imputed": report.impression_imputed,
            "without some of its images": LOST_IMAGES in study.meta,
            entry.note: entry.note,
        }
        if shown := {note: 1 for note, holds in notes.items() if holds}:
            found["notes"] = shown
    for name, numbers in found.items():
        counts.setdefault(name, Counter()).update(numbers)
