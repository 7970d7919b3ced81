"""Step 5: which study stands in which shard.

One pass over the entries: those left out go to two files; of the others their place in the work files is kept, 16 bytes a
study. Knows nothing of images.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Final

import numpy as np

from echo_pl.data.loading.order import Indices
from echo_pl.data.pipeline.entries import Entry, LeftOut, decode
from echo_pl.data.pipeline.files import json_line, read_json, read_lines
from echo_pl.data.pipeline.listing import Listing, chunk_path
from echo_pl.data.pipeline.splits import SPLITS, Splitter
from echo_pl.io.atomic import atomic_file, write_json

GENERAL_FILE: Final = -1
"""Number of the file of general samples, where studies have that of their work file."""
LEFT_OUT: Final = "left_out.jsonl"
"""All that were left out, without their reports."""
REVIEW: Final = "review.jsonl"
"""Those that failed their check, with their reports."""
_DONE: Final = "done.json"


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """The places of all studies that may become part of the corpus."""

    folder: Path
    counts: Mapping[str, int]
    """Split to its number of studies; splits without any are not there."""
    patients: Mapping[str, int]
    """Split to its number of patients."""
    shared_patients: int
    """Patients who are in more than one split, which official splits may bring about."""

    def places(self, split: str) -> Indices:
        """(studies, 2): number of the work file, offset in it; in the order of the shards."""
        return np.load(self.folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)


@dataclass
class _Split:
    numbers: array[int] = field(default_factory=lambda: array("q"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    patients: array[int] = field(default_factory=lambda: array("Q"))


def arrange(
    *,
    entries: Path,
    listing: Listing,
    base: Path,
    splitter: Splitter,
    duplicates: Mapping[int, str],
    folder: Path,
    on_entries: Callable[[int], None],
) -> Arrangement:
    """Find the place of every study, or what was found before.

    Args:
        entries: folder of the last step's files.
        listing: how many there are.
        base: of relative paths.
        splitter: puts studies into splits.
        duplicates: places that another step leaves out, with a sentence why.
        folder: for the result.
        on_entries: told how many entries more were looked at.
    """
    if not (folder / _DONE).is_file():
        splits = {split: _Split() for split in SPLITS}
        with ExitStack() as files:
            left_out, review = (files.enter_context(atomic_file(folder / name)) for name in (LEFT_OUT, REVIEW))
            for number in listing.chunks:
                count = 0
                for offset, entry in _kept(chunk_path(entries, number), base, splitter, duplicates):
                    count += 1
                    if isinstance(entry, LeftOut):
                        _note(entry, left_out, review)
                    else:
                        _put(splits, splitter, entry, number, offset)
                        for lost in entry.study.lost:
                            _note(entry.left_out("image", "read", lost.reason, lost.detail), left_out, review)
                on_entries(count)
        _save(folder, splits)
    done = read_json(folder / _DONE)
    return Arrangement(folder=folder, **done)


def _kept(path: Path, base: Path, splitter: Splitter, duplicates: Mapping[int, str]) -> Iterator[tuple[int, Entry | LeftOut]]:
    for offset, record in read_lines(path):
        entry = decode(record, base)
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


def _put(splits: Mapping[str, _Split], splitter: Splitter, entry: Entry, number: int, offset: int) -> None:
    split = splitter.split_of(entry.study)
    assert split is not None  # _kept leaves such entries out
    splits[split].numbers.append(number)
    splits[split].offsets.append(offset)
    splits[split].patients.append(int.from_bytes(hashlib.sha256(entry.study.patient.encode()).digest()[:8], "big"))


def _save(folder: Path, splits: Mapping[str, _Split]) -> None:
    found = {split: part for split, part in splits.items() if part.numbers}
    patients = {split: np.unique(np.frombuffer(part.patients, dtype=np.uint64)) for split, part in found.items()}
    for split, part in found.items():
        columns = [np.frombuffer(column, dtype=np.int64) for column in (part.numbers, part.offsets)]
        with atomic_file(folder / f"{split}.npy") as file:
            np.save(file, np.stack(columns, axis=1))
    distinct = len(np.unique(np.concatenate([*patients.values(), np.zeros(0, np.uint64)])))
    number_of = {split: len(some) for split, some in patients.items()}
    counts = {split: len(part.numbers) for split, part in found.items()}
    write_json(folder / _DONE, {"counts": counts, "patients": number_of, "shared_patients": sum(number_of.values()) - distinct})
