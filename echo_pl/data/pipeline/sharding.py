"""Step 6: shards, each from a fixed slice of its split, so that its bytes do not depend on who writes it when.

Images are opened here, one study at a time; one that cannot be used is left out, and so is a study of which none can. Beside
each shard stands a file that says what is in it. Knows nothing of normalizing.
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
from echo_pl.data.pipeline.arranging import GENERAL_FILE
from echo_pl.data.pipeline.entries import Entry, LeftOut, decode
from echo_pl.data.pipeline.files import read_json, read_lines
from echo_pl.data.pipeline.listing import chunk_path
from echo_pl.data.readers.reader import loggable_name
from echo_pl.data.store.corpus_index import Shard
from echo_pl.data.store.shard_writer import encode_study
from echo_pl.data.store.study import Study
from echo_pl.data.store.webdataset_secure import TarWriter
from echo_pl.io.atomic import atomic_file, write_json
from echo_pl.io.stop_signals import check_stop
from echo_pl.reports.regions import SECTIONS
from echo_pl.reports.report import NormalizedReport, RawReport
from echo_pl.structs import ReportText

STATEMENTS: Final = "statements"
"""In a study's ``meta``: ``[[section, characters, imputed], ...]`` of the findings, in their order."""
LOST_IMAGES: Final = "lost_images"
"""In a study's ``meta``: how many images the dataset names besides those that are here."""
RESERVED: Final = frozenset({"corpus", "impression", "kind", "language", LOST_IMAGES, "patient", "prompt", STATEMENTS, "view"})
"""What ``meta`` says in words of this pipeline: a dataset's own note of such a name is kept as ``source_<name>``."""


@dataclass(frozen=True, kw_only=True)
class _GoodImage:
    image: Image.Image
    view: str


@dataclass(frozen=True, kw_only=True)
class _BadImage:
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class ShardSlice:
    """What is to stand in one shard."""

    split: str
    number: int
    places: tuple[tuple[int, int], ...]
    """(number of the work file, offset in it) of each study."""

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.split}-{self.number:06d}.tar"


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """What stands in one shard."""

    split: str
    shard: Shard | None
    """None where no study of the slice could be used: there is no file then."""
    left_out: tuple[LeftOut, ...]
    counts: Mapping[str, Mapping[str, int]]
    """``studies``, ``languages``, ``imputed``, ``labels``, ``images``, ``redacted``, ``dropped``, ``notes`` by name."""


def shard_slices(split: str, places: Indices, general: Indices, *, size: int, seed: int) -> Iterator[ShardSlice]:
    """Shuffle the studies of a split, general samples among them, and cut them into shards."""
    total = len(places) + len(general)
    order = np.random.default_rng([seed, 2]).permutation(total)
    for number, start in enumerate(range(0, total, size)):
        rows = order[start : start + size]
        of = np.where(rows < len(places), rows, rows - len(places))
        chosen = [(places if row < len(places) else general)[place] for row, place in zip(rows, of, strict=True)]
        yield ShardSlice(split=split, number=number, places=tuple((int(file), int(offset)) for file, offset in chosen))


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """The task of writing one shard; called with its slice, in any process."""

    base: Path
    entries: Path
    """Folder of the studies' work files."""
    general: Path
    """Folder of general samples."""
    folder: Path
    """Where to."""
    corpus: str
    max_pixels: int
    anonymous: bool
    """Whether keys are numbers, and patients and the dataset's own notes are left out."""

    def __call__(self, wanted: ShardSlice) -> int:
        """Write the shard, then the file beside it; return how many studies were dealt with.

        Raises:
            ValueError: an image file is not what it was when the source was listed.
            OSError: the disk is full.
        """
        left_out: list[LeftOut] = []
        counts: dict[str, Counter[str]] = {}
        characters: list[int] = []
        path = self.folder / wanted.name
        with atomic_file(path) as file, TarWriter(file, mtime=0) as writer:
            for entry in self._read(wanted):
                opened = self._open(entry)
                bad = [one for one in opened if isinstance(one, _BadImage)]
                good = [one for one in opened if isinstance(one, _GoodImage)]
                if not good:
                    left_out.append(entry.left_out("reject", "images", bad[0].reason, "; ".join(one.detail for one in bad)))
                    continue
                left_out += (entry.left_out("image", "images", one.reason, one.detail) for one in bad)
                study = self._study(entry, good)
                writer.write(encode_study(study))
                characters.append(len(study.normalized.findings) + len(study.normalized.impression))
                _count(counts, entry, study)
        shard = _describe(path, tuple(characters))
        record = {
            "shard": None if shard is None else asdict(shard),
            "left_out": [asdict(one) for one in left_out],
            "counts": {name: dict(sorted(some.items())) for name, some in sorted(counts.items())},
        }
        write_json(beside(path), record)
        return len(wanted.places)

    def is_done(self, wanted: ShardSlice) -> bool:
        """Whether the shard is there."""
        return beside(self.folder / wanted.name).is_file()

    def written(self, wanted: ShardSlice) -> WrittenShard:
        """What was written."""
        record = read_json(beside(self.folder / wanted.name))
        return WrittenShard(
            split=wanted.split,
            shard=None if record["shard"] is None else Shard(**record["shard"]),
            left_out=tuple(LeftOut(**one) for one in record["left_out"]),
            counts=record["counts"],
        )

    def _read(self, wanted: ShardSlice) -> Iterator[Entry]:
        for number, offset in wanted.places:
            check_stop()
            path = chunk_path(self.general, 0) if number == GENERAL_FILE else chunk_path(self.entries, number)
            with path.open("rb") as file:  # nearly every study of a shard is in another one: too many to keep open
                file.seek(offset)
                entry = decode(json.loads(file.readline()), self.base)
            assert isinstance(entry, Entry)  # places are those of studies
            yield entry

    def _study(self, entry: Entry, images: Sequence[_GoodImage]) -> Study:
        source = entry.study
        report = _text(source.report) if entry.normalized is None else entry.normalized.text
        return Study(
            key=f"{self.corpus}-{entry.place:07d}" if self.anonymous and entry.normalized is not None else source.key,
            images=tuple(one.image for one in images),
            normalized=report,
            raw=None if entry.normalized is None else _text(source.report),
            labels=source.labels,
            meta=self._meta(entry, [one.view for one in images]),
        )

    def _open(self, entry: Entry) -> list[_GoodImage | _BadImage]:
        opened: list[_GoodImage | _BadImage] = []
        for image, size in zip(entry.study.images, entry.sizes, strict=True):
            if not image.path.is_file() or os.stat(image.path).st_size != size:
                raise ValueError(
                    f"an image of entry {entry.place} has changed or gone since the source was listed; see that the whole source "
                    "is there, then run again; if it is to be as it is now, delete the work folder first"
                )
            try:
                found = load_image(image.path, self.max_pixels, root=image.root).image
                opened.append(_GoodImage(image=found, view=image.view))
            except ImageError as error:
                opened.append(_BadImage(reason=error.reason, detail=f"{loggable_name(image.path.name)}: {error.detail}"))
        return opened

    def _meta(self, entry: Entry, views: Sequence[str]) -> dict[str, str]:
        source, report = entry.study, entry.normalized
        if report is None:
            return {"corpus": self.corpus, **source.meta}
        told = {f"source_{name}" if name in RESERVED else name: value for name, value in source.meta.items()}
        meta = {} if self.anonymous else {"patient": source.patient, **told}
        if any(views):
            meta["view"] = "|".join(views)
        if lost := len(source.images) + len(source.lost) - len(views):
            meta[LOST_IMAGES] = str(lost)
        if report.impression_imputed:
            meta["impression"] = "imputed"
        ordered = [one for section in SECTIONS for one in report.statements if one.section == section]
        spans = [[one.section, len(one.text), one.imputed] for one in ordered]
        return {**meta, "corpus": self.corpus, "language": report.language, STATEMENTS: json.dumps(spans, separators=(",", ":"))}


def beside(path: Path) -> Path:
    """Where what is in a shard is said."""
    return path.with_suffix(".json")


def general_places(folder: Path) -> Indices:
    """(samples, 2): the places of the general samples that can be used."""
    found = [[GENERAL_FILE, offset] for offset, record in read_lines(chunk_path(folder, 0)) if "entry" in record]
    return np.asarray(found, dtype=np.int64).reshape(-1, 2)


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
    def add(name: str, what: Mapping[str, int]) -> None:
        counts.setdefault(name, Counter()).update(what)

    report: NormalizedReport | None = entry.normalized
    add("images", {"images": len(study.images)})
    add("studies", {GENERAL if report is None else "reports": 1})
    if report is None:
        return
    add("languages", {report.language: 1})
    add("imputed", dict.fromkeys(report.imputed, 1))
    add("labels", dict.fromkeys(study.labels, 1))
    add("dropped", report.dropped)
    add("redacted", entry.redacted)
    if report.impression_imputed:
        add("notes", {"impression imputed": 1})
    if LOST_IMAGES in study.meta:
        add("notes", {"without some of its images": 1})
    if entry.note:
        add("notes", {entry.note: 1})
