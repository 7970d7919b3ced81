"""Entries: studies in the work folder, and what was left out, in numbered files of JSON lines.

Step 1 lists the source once. All later steps read these files, so a dataset is not read twice, and a change in between is
noticed by the sizes of the images. A line contains report text; only the owner may read the work folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, get_args

from echo_pl.data.pipeline.settings import Settings
from echo_pl.data.readers.reader import CorpusReader, LostImage, Reject, SourceImage, SourceStudy
from echo_pl.io.atomic import atomic_file, write_json
from echo_pl.io.stop_signals import check_stop
from echo_pl.reports.report import NormalizedReport, RawReport, Statement

Record = dict[str, Any]
Kind = Literal["reject", "review", "filtered", "image"]
"""``reject``: unusable. ``review``: its normalized report is not trusted. ``filtered``: excluded by the settings.
``image``: one image of a study that keeps its other images."""
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
INCOMPLETE: Final = "incomplete_report"
"""Reason for leaving out a report without findings or without impression."""
DONE: Final = "done.json"
"""Last file of a step that is finished."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Entry of the source, or image of one, that is in no shard, with the reason."""

    place: int
    """Index of the entry in the source; -1: none."""
    key: str
    kind: Kind
    step: str
    """Step that left it out: ``read``, ``normalize``, ``near-duplicates``, ``images`` ..."""
    reason: str
    """Short name that is counted."""
    detail: str = ""
    """No words of a report."""
    report: Mapping[str, Any] | None = None
    """Original and normalized report, for the review file only."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One study on its way to a shard."""

    place: int
    """Index in the source."""
    study: SourceStudy
    sizes: tuple[int, ...]
    """Bytes of each image file when the source was listed."""
    normalized: NormalizedReport | None = None
    """None before normalization, and for general image-text samples."""
    redacted: Mapping[str, int] = field(default_factory=dict)
    """Number of redactions by kind."""
    note: str = ""
    """Failure that left the study in; counted on the card."""

    def left_out(self, kind: Kind, step: str, reason: str, detail: str = "", report: Mapping[str, Any] | None = None) -> LeftOut:
        """Return the record that leaves this study out."""
        return LeftOut(place=self.place, key=self.study.key, kind=kind, step=step, reason=reason, detail=detail, report=report)


def encode(entry: Entry | LeftOut, base: Path) -> Record:
    """Return an entry as JSON, with paths relative to ``base``, so that a moved dataset gives the same entries."""
    if isinstance(entry, LeftOut):
        return {"left_out": asdict(entry)}
    record = asdict(entry)
    for image in record["study"]["images"]:
        image.update({name: relative(value, base) for name, value in image.items() if isinstance(value, Path)})
    return {"entry": record}


def decode(record: Record, base: Path) -> Entry | LeftOut:
    """Invert :func:`encode`."""
    if "left_out" in record:
        return LeftOut(**record["left_out"])
    entry = record["entry"]
    study, normalized = entry["study"], entry["normalized"]
    found = {
        "images": tuple(_image(image, base) for image in study["images"]),
        "report": RawReport(**study["report"]),
        "labels": tuple(study["labels"]),
        "lost": tuple(LostImage(**one) for one in study["lost"]),
    }
    if normalized is not None:
        normalized = NormalizedReport(**{**normalized, "statements": tuple(Statement(**one) for one in normalized["statements"])})
    return Entry(**{**entry, "study": SourceStudy(**{**study, **found}), "sizes": tuple(entry["sizes"]), "normalized": normalized})


def _image(record: Record, base: Path) -> SourceImage:
    # Joined as text, without following links: a folder may be a link to one with other neighbours.
    paths = {name: Path(os.path.normpath(base / record[name])) for name in ("path", "root") if record.get(name) is not None}
    return SourceImage(**{**record, **paths})


def relative(path: Path, base: Path) -> str:
    """Return a path relative to a folder; links are not followed.

    >>> relative(Path("/data/iu/png/1.png"), Path("/data/iu/reports"))
    '../png/1.png'
    """
    return os.path.relpath(path, base)


def read_json(path: Path) -> Record:
    """Read one JSON object; raise ValueError for other content."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no JSON object")
    return record


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, readable by the owner alone. ASCII, as file names need not be UTF-8."""
    with atomic_file(path, private=True) as file:
        for record in records:
            check_stop()
            file.write(json_line(record))


def json_line(record: Mapping[str, Any]) -> bytes:
    """Return one object as a line."""
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def read_lines(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (offset in bytes, object) of each line of a file that :func:`write_lines` wrote."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            check_stop()
            yield offset, json.loads(line)
            offset += len(line)


@dataclass(frozen=True)
class EntryFiles:
    """Numbered files of entries in a folder. Paths of images are stored relative to ``base``."""

    folder: Path
    base: Path

    def path(self, number: int) -> Path:
        """Path of a file."""
        return self.folder / f"{number:06d}.jsonl"

    def located(self, number: int) -> Iterator[tuple[int, Entry | LeftOut]]:
        """Yield (offset in bytes, entry) of a file."""
        return ((offset, decode(record, self.base)) for offset, record in read_lines(self.path(number)))

    def read(self, number: int) -> Iterator[Entry | LeftOut]:
        """Yield the entries of a file."""
        return (entry for _, entry in self.located(number))

    def read_at(self, number: int, offset: int) -> Entry | LeftOut:
        """Read one entry."""
        with self.path(number).open("rb") as file:
            file.seek(offset)
            return decode(json.loads(file.readline()), self.base)

    def write(self, number: int, entries: Iterable[Entry | LeftOut]) -> None:
        """Write a file."""
        write_lines(self.path(number), (encode(one, self.base) for one in entries))


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Totals of the listed source."""

    entries: int
    """Studies and rejects."""
    studies: int
    official: int
    """Studies with an official split."""
    work_size: int
    """Entries of each file but the last."""
    digest: str
    """Hash of all files: identity of the source."""

    @property
    def chunks(self) -> range:
        """Numbers of the files."""
        return range(-(-self.entries // self.work_size))

    def entries_of(self, number: int) -> int:
        """Number of entries of a file."""
        return min(self.work_size, self.entries - number * self.work_size)


def list_source(reader: CorpusReader, files: EntryFiles, settings: Settings, on_entries: Callable[[int], None]) -> Listing:
    """List the source, or the part that is not listed yet; report the number of entries of each file.

    Raises:
        FileNotFoundError: If files of the dataset are missing.
        ValueError: If it is another dataset, or has no entry.
    """
    if (files.folder / DONE).is_file():
        listing = Listing(**read_json(files.folder / DONE))
        on_entries(listing.entries)
        return listing
    count = _Count()
    chunks = 0
    while (path := files.path(chunks)).is_file():
        on_entries(count.add(path, list(files.read(chunks))))
        chunks += 1
    found = _filtered(reader, settings, count.entries, count.keys)
    while some := list(islice(found, settings.work_size)):
        files.write(chunks, some)
        on_entries(count.add(files.path(chunks), some))
        chunks += 1
    if not count.entries:
        raise ValueError(f"the reader {reader.name} found nothing in {files.base}")
    numbers = {"entries": count.entries, "studies": count.studies, "official": count.official, "work_size": settings.work_size}
    digest = count.digest.hexdigest()[:16]
    write_json(files.folder / DONE, {**numbers, "digest": digest})
    return Listing(digest=digest, **numbers)


class _Count:
    """Totals of the listed files. Of a study the pipeline keeps only its key in memory, about 120 bytes."""

    def __init__(self) -> None:
        self.entries = self.studies = self.official = 0
        self.keys: set[str] = set()
        self.digest = hashlib.sha256()

    def add(self, path: Path, entries: Sequence[Entry | LeftOut]) -> int:
        """Add a file; return its number of entries."""
        studies = [entry.study for entry in entries if isinstance(entry, Entry)]
        self.entries += len(entries)
        self.studies += len(studies)
        self.official += sum(study.split is not None for study in studies)
        self.keys.update(study.key for study in studies)
        self.digest.update(path.read_bytes())
        return len(entries)


def _filtered(reader: CorpusReader, settings: Settings, skip: int, keys: set[str]) -> Iterator[Entry | LeftOut]:
    """Entries from a place on. Repeated keys are rejected, whatever the reader does."""
    for place, found in enumerate(reader.studies(skip=skip), start=skip):
        check_stop()
        if isinstance(found, Reject):
            key, detail = _utf8(found.key), _utf8(found.detail)
            yield LeftOut(place=place, key=key, kind="reject", step="read", reason=found.reason, detail=detail)
            continue
        entry = _entry(place, found, settings, keys)
        if isinstance(entry, Entry):
            keys.add(found.key)
        yield entry


def _entry(place: int, study: SourceStudy, settings: Settings, keys: set[str]) -> Entry | LeftOut:
    entry = Entry(place=place, study=study, sizes=())
    if study.key in keys:
        return entry.left_out("reject", "read", "duplicate_id")
    if not study.images:
        return entry.left_out("reject", "read", "no_image")
    if settings.modalities and study.modality and study.modality.upper() not in settings.modalities:
        return entry.left_out("filtered", "read", "other_modality", _utf8(study.modality))
    if settings.languages and study.language not in settings.languages:
        return entry.left_out("reject", "read", "other_language", _utf8(study.language))
    if not settings.keep_incomplete and not (study.report.findings.strip() and study.report.impression.strip()):
        return entry.left_out("filtered", "read", INCOMPLETE)
    try:
        for text in (*astuple(study.report), study.patient, *study.labels, *study.meta, *study.meta.values()):
            text.encode()
        return replace(entry, sizes=tuple(os.stat(image.path).st_size for image in study.images))
    except UnicodeEncodeError:
        return entry.left_out("reject", "read", "undecodable_text")
    except OSError as error:
        return entry.left_out("reject", "read", "missing_image", type(error).__name__)


def _utf8(text: str) -> str:
    """Text with everything escaped that UTF-8 cannot encode."""
    return text.encode("utf-8", errors="backslashreplace").decode()
