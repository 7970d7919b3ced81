"""Steps 3 and 5: split of each study, near-duplicates in the training split, and the order of studies in each split."""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Final

import numpy as np

from echo_pl.data.loading.order import Indices
from echo_pl.data.pipeline.components import DuplicateSearch
from echo_pl.data.pipeline.entries import DONE, Entry, EntryFiles, LeftOut, Listing, json_line, read_json
from echo_pl.data.pipeline.settings import Settings
from echo_pl.data.readers.reader import SourceStudy
from echo_pl.data.readers.split import SPLITS, patient_split
from echo_pl.io.atomic import atomic_file, write_json

logger = logging.getLogger(__name__)
LEFT_OUT: Final = "left_out.jsonl"
"""Everything that was left out, without reports."""
REVIEW: Final = "review.jsonl"
"""Studies that failed their check, with their reports."""


@dataclass(frozen=True, kw_only=True)
class Splitter:
    """Rule that assigns studies to splits: the dataset's own, or a function of seed and patient."""

    official: bool
    seed: int = 0
    val_share: float = 0.0
    test_share: float = 0.0

    def split_of(self, study: SourceStudy) -> str | None:
        """Return train, val or test; None if the official split is missing."""
        if self.official:
            return study.split if study.split in SPLITS else None
        return patient_split(study.patient, seed=self.seed, val_share=self.val_share, test_share=self.test_share)


def choose_splitter(settings: Settings, listing: Listing) -> Splitter:
    """Return the rule that settings and listing determine.

    Raises:
        ValueError: If only some studies have an official split and the settings do not decide, or if none has the official
            split that the settings require.
    """
    if settings.splits == "auto" and 0 < listing.official < listing.studies:
        raise ValueError(
            f"{listing.official} of {listing.studies} studies have an official split, the others none: set splits=official (the "
            "others are left out) or splits=patient (all are split again, by patient)"
        )
    if settings.splits == "official" and not listing.official:
        raise ValueError("splits=official, but no study of this dataset has an official split; set splits=patient")
    if settings.splits == "official" or (settings.splits == "auto" and listing.official):
        if (settings.val_share, settings.test_share) != (Settings.val_share, Settings.test_share):
            logger.warning("val_share and test_share are not used: the splits are the dataset's own; splits=patient uses them")
        return Splitter(official=True)
    return Splitter(official=False, seed=settings.seed, val_share=settings.val_share, test_share=settings.test_share)


def find_duplicates(
    search: DuplicateSearch,
    settings: Settings,
    entries: EntryFiles,
    listing: Listing,
    splitter: Splitter,
    *,
    vectors: Path,
    result: Path,
    on_entries: Callable[[int], None],
) -> Mapping[int, str]:
    """Find near-duplicates in the training split. Validation and test keep theirs, as they must measure the same.

    Args:
        search: Method of finding them.
        settings: Smallest cosine, and the report that is compared.
        entries: Normalized entries.
        listing: Totals of the source.
        splitter: Rule of the splits.
        vectors: Folder for the intermediate results of an interrupted search.
        result: File of the result; an existing one is loaded.
        on_entries: Called with the number of entries of each file, twice for each.

    Returns:
        Place of each study to leave out, with a sentence about the study that it resembles.
    """
    assert settings.near_duplicates is not None
    if not result.is_file():

        def texts(train: bool) -> Iterator[tuple[str, str]]:
            for number in listing.chunks:
                count = 0
                for entry in entries.read(number):
                    split = splitter.split_of(entry.study) if isinstance(entry, Entry) else None
                    if isinstance(entry, Entry) and split is not None and (split == "train") == train:
                        yield str(entry.place), _compared_text(entry, settings)
                    count += 1
                on_entries(count)

        found = {
            one.key: f"cosine {one.cosine:.3f} with entry {one.of}{' of a held-out split' if one.held_out else ''}"
            for one in search.find(texts(train=True), texts(train=False), settings.near_duplicates, vectors)
        }
        write_json(result, {"left_out": found})
    return {int(place): detail for place, detail in read_json(result)["left_out"].items()}


def _compared_text(entry: Entry, settings: Settings) -> str:
    if settings.duplicate_text == "original":
        return f"{entry.study.report.findings} {entry.study.report.impression}"
    assert entry.normalized is not None  # a study without one is left out already
    text = entry.normalized.text
    return f"{text.findings} {text.impression}"


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """Places of all studies that may become part of the corpus."""

    folder: Path
    counts: Mapping[str, int]
    """Number of studies of each split that has any."""
    patients: Mapping[str, int]
    """Number of patients of each split."""
    shared_patients: int
    """Patients in several splits, which official splits may cause."""

    def places(self, split: str) -> Indices:
        """(studies, 2): number of the work file, offset in it; in the order of the source."""
        return np.load(self.folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)


@dataclass
class _Split:
    numbers: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    patients: array[int] = field(default_factory=lambda: array("Q"))


def arrange(
    entries: EntryFiles,
    listing: Listing,
    splitter: Splitter,
    duplicates: Mapping[int, str],
    folder: Path,
    on_entries: Callable[[int], None],
) -> Arrangement:
    """Find the place of every study, 16 bytes each, and write those left out to two files; a finished folder is loaded."""
    if not (folder / DONE).is_file():
        splits = {split: _Split() for split in SPLITS}
        with ExitStack() as files:
            left_out, review = (files.enter_context(atomic_file(folder / name)) for name in (LEFT_OUT, REVIEW))
            for number in listing.chunks:
                count = 0
                for offset, entry in _kept(entries, number, splitter, duplicates):
                    count += 1
                    if isinstance(entry, LeftOut):
                        _note(entry, left_out, review)
                        continue
                    place = splits[splitter.split_of(entry.study) or ""]  # _kept leaves out entries without a split
                    place.numbers.append(number)
                    place.offsets.append(offset)
                    place.patients.append(int.from_bytes(hashlib.sha256(entry.study.patient.encode()).digest()[:8], "big"))
                    for lost in entry.study.lost:
                        _note(entry.left_out("image", "read", lost.reason, lost.detail), left_out, review)
                on_entries(count)
        _save(folder, splits)
    return Arrangement(folder=folder, **read_json(folder / DONE))


def _kept(
    entries: EntryFiles, number: int, splitter: Splitter, duplicates: Mapping[int, str]
) -> Iterator[tuple[int, Entry | LeftOut]]:
    for offset, entry in entries.located(number):
        if isinstance(entry, Entry) and entry.place in duplicates:
            entry = entry.left_out("filtered", "near-duplicates", "near_duplicate", duplicates[entry.place])
        elif isinstance(entry, Entry) and splitter.split_of(entry.study) is None:
            entry = entry.left_out("filtered", "splits", "no_official_split")
        yield offset, entry


def _note(entry: LeftOut, left_out: IO[bytes], review: IO[bytes]) -> None:
    record = asdict(entry)
    if entry.kind == "review":
        review.write(json_line(record))
    left_out.write(json_line({**record, "report": None}))


def _save(folder: Path, splits: Mapping[str, _Split]) -> None:
    found = {split: one for split, one in splits.items() if one.numbers}
    patients = {split: np.unique(np.frombuffer(one.patients, dtype=np.uint64)) for split, one in found.items()}
    for split, one in found.items():
        columns = [np.frombuffer(column, dtype=np.int64) for column in (one.numbers, one.offsets)]
        with atomic_file(folder / f"{split}.npy") as file:
            np.save(file, np.stack(columns, axis=1))
    distinct = len(np.unique(np.concatenate([*patients.values(), np.zeros(0, np.uint64)])))
    number_of = {split: len(some) for split, some in patients.items()}
    counts = {split: len(one.numbers) for split, one in found.items()}
    write_json(folder / DONE, {"counts": counts, "patients": number_of, "shared_patients": sum(number_of.values()) - distinct})
