"""Step 1: the source is read once, into numbered files of a few hundred entries each.

Everything that comes after works on these files, so a dataset is neither read twice nor may change in between: the bytes of
every image file are noted. Filters that need no normalizer are here too. Knows what readers give; nothing of normalized
reports.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from echo_pl.data.pipeline.entries import Entry, LeftOut, encode, read_entries
from echo_pl.data.pipeline.files import read_json, write_lines
from echo_pl.data.pipeline.settings import Settings
from echo_pl.data.readers.reader import CorpusReader, Reject, SourceStudy
from echo_pl.io.atomic import write_json
from echo_pl.io.stop_signals import check_stop

INCOMPLETE: Final = "incomplete_report"
"""Reason for leaving out a report without findings or without impression."""
_DONE: Final = "done.json"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All of a source, in files."""

    folder: Path
    entries: int
    """Studies and rejects."""
    studies: int
    official: int
    """Studies that the dataset puts into a split."""
    work_size: int
    """Entries of one file, but for the last."""
    digest: str
    """Hash of all files: what the corpus is made of."""

    @property
    def chunks(self) -> range:
        """Numbers of the files."""
        return range(-(-self.entries // self.work_size))

    def entries_of(self, number: int) -> int:
        """How many entries a file has."""
        return min(self.work_size, self.entries - number * self.work_size)


def chunk_path(folder: Path, number: int) -> Path:
    """Where a numbered file is."""
    return folder / f"{number:06d}.jsonl"


def list_source(reader: CorpusReader, base: Path, folder: Path, settings: Settings, on_entries: Callable[[int], None]) -> Listing:
    """Read the source, or what is not read yet of it.

    Args:
        reader: of the dataset.
        base: paths inside it are kept relative to it.
        folder: for the files.
        settings: which studies are wanted.
        on_entries: told how many entries more are listed.

    Raises:
        FileNotFoundError: the dataset is not where it should be.
        ValueError: it is another dataset, or has no entry.
    """
    if (folder / _DONE).is_file():
        listing = Listing(folder=folder, **read_json(folder / _DONE))
        on_entries(listing.entries)
        return listing
    count = _Count()
    chunks = 0
    while (path := chunk_path(folder, chunks)).is_file():
        on_entries(count.add(path, list(read_entries(path, base))))
        chunks += 1
    found = _listed(reader, settings, count.entries, count.keys)
    while some := list(islice(found, settings.work_size)):
        path = chunk_path(folder, chunks)
        write_lines(path, (encode(one, base) for one in some))
        on_entries(count.add(path, some))
        chunks += 1
    if not count.entries:
        raise ValueError(f"the reader {reader.name} found nothing in {base}")
    numbers = {"entries": count.entries, "studies": count.studies, "official": count.official, "work_size": settings.work_size}
    digest = count.digest.hexdigest()[:16]
    write_json(folder / _DONE, {**numbers, "digest": digest})
    return Listing(folder=folder, digest=digest, **numbers)


class _Count:
    """What is listed so far. Its keys are the most that the whole pipeline holds of a study: about 120 bytes."""

    def __init__(self) -> None:
        self.entries = self.studies = self.official = 0
        self.keys: set[str] = set()
        self.digest = hashlib.sha256()

    def add(self, path: Path, entries: Sequence[Entry | LeftOut]) -> int:
        """Count a file in; how many entries it has."""
        studies = [entry.study for entry in entries if isinstance(entry, Entry)]
        self.entries += len(entries)
        self.studies += len(studies)
        self.official += sum(study.split is not None for study in studies)
        self.keys.update(study.key for study in studies)
        self.digest.update(path.read_bytes())
        return len(entries)


def _listed(reader: CorpusReader, settings: Settings, skip: int, keys: set[str]) -> Iterator[Entry | LeftOut]:
    """Entries from a place on. Keys that were there before are rejected, whatever the reader thinks of them."""
    for place, found in enumerate(reader.studies(skip=skip), start=skip):
        check_stop()
        if isinstance(found, Reject):
            yield LeftOut(
                place=place, key=_safe(found.key), kind="reject", step="read", reason=found.reason, detail=_safe(found.detail)
            )
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
        return entry.left_out("filtered", "read", "other_modality", _safe(study.modality))
    if settings.languages and study.language not in settings.languages:
        return entry.left_out("reject", "read", "other_language", _safe(study.language))
    if not settings.keep_incomplete and not (study.report.findings.strip() and study.report.impression.strip()):
        return entry.left_out("filtered", "read", INCOMPLETE)
    try:
        for text in (*astuple(study.report), study.patient, *study.labels, *study.meta, *study.meta.values()):
            text.encode()
        sizes = tuple(os.stat(image.path).st_size for image in study.images)
    except UnicodeEncodeError:
        return entry.left_out("reject", "read", "undecodable_text")
    except OSError as error:
        return entry.left_out("reject", "read", "missing_image", type(error).__name__)
    return Entry(place=place, study=study, sizes=sizes)


def _safe(text: str) -> str:
    """The same text with what cannot be written as UTF-8 escaped."""
    return text.encode("utf-8", errors="backslashreplace").decode()
