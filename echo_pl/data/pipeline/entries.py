"""What steps hand on in files: studies on their way, and what was left out of them, as JSON lines.

A line holds report text; its file is in the work folder, which only its owner may read. Knows nothing of steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from echo_pl.data.pipeline.files import Record, read_lines
from echo_pl.data.readers.reader import LostImage, SourceImage, SourceStudy
from echo_pl.reports.report import NormalizedReport, RawReport, Statement

Kind = Literal["reject", "review", "filtered", "image"]
"""``reject``: cannot be used. ``review``: its normalized report is not trusted. ``filtered``: not wanted, as the settings say.
``image``: one image of a study, which stays with its others."""
KINDS: tuple[Kind, ...] = ("reject", "review", "filtered", "image")


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """One entry of the source that is in no shard, or one image of it, and why."""

    place: int
    """Of the entry in the source, from 0; -1: of none."""
    key: str
    kind: Kind
    step: str
    """Which step left it out: ``read``, ``normalize``, ``near-duplicates``, ``images`` ..."""
    reason: str
    """A short name that is counted."""
    detail: str = ""
    """None of a report's words."""
    report: Mapping[str, Any] | None = None
    """For a person who reviews: original and normalized. Never leaves the review file."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One study on its way."""

    place: int
    """In the source, from 0."""
    study: SourceStudy
    sizes: tuple[int, ...]
    """Bytes of each image file when the source was listed."""
    normalized: NormalizedReport | None = None
    """None before the normalizer, and for general image-text samples."""
    redacted: Mapping[str, int] = field(default_factory=dict)
    """How often what was taken out of its original."""
    note: str = ""
    """What a step could not do with it though it stays in: counted on the card."""

    def with_report(self, report: RawReport) -> Entry:
        """The same study with another original report."""
        return replace(self, study=replace(self.study, report=report))

    def left_out(self, kind: Kind, step: str, reason: str, detail: str = "", report: Mapping[str, Any] | None = None) -> LeftOut:
        """Why this study is left out."""
        return LeftOut(place=self.place, key=self.study.key, kind=kind, step=step, reason=reason, detail=detail, report=report)


def encode(entry: Entry | LeftOut, base: Path) -> Record:
    """An entry as JSON; paths become relative to ``base``, so that the same files elsewhere are the same entry."""
    if isinstance(entry, LeftOut):
        return {"left_out": asdict(entry)}
    record = asdict(entry)
    for image in record["study"]["images"]:
        for name, value in image.items():
            if isinstance(value, Path):
                image[name] = relative(value, base)
    return {"entry": record}


def decode(record: Record, base: Path) -> Entry | LeftOut:
    """What :func:`encode` made."""
    if "left_out" in record:
        return LeftOut(**record["left_out"])
    entry = record["entry"]
    study = entry["study"]
    found = SourceStudy(
        **{
            **study,
            "images": tuple(_image(image, base) for image in study["images"]),
            "report": RawReport(**study["report"]),
            "labels": tuple(study["labels"]),
            "lost": tuple(LostImage(**one) for one in study["lost"]),
        }
    )
    return Entry(
        place=entry["place"],
        study=found,
        sizes=tuple(entry["sizes"]),
        normalized=_normalized(entry["normalized"]),
        redacted=entry["redacted"],
        note=entry["note"],
    )


def read_entries(path: Path, base: Path) -> Iterator[Entry | LeftOut]:
    """Yield the entries of a file of lines."""
    return (decode(record, base) for _, record in read_lines(path))


def report_record(raw: RawReport, normalized: NormalizedReport | None) -> Record:
    """Both versions of a report, for the review file."""
    return {"original": asdict(raw), "normalized": None if normalized is None else asdict(normalized)}


def _normalized(record: Record | None) -> NormalizedReport | None:
    if record is None:
        return None
    return NormalizedReport(**{**record, "statements": tuple(Statement(**one) for one in record["statements"])})


def _image(record: Record, base: Path) -> SourceImage:
    # A name that leads out of the folder is joined as text: the folder may be a link to one with other neighbours.
    paths = {name: Path(os.path.normpath(base / record[name])) for name in ("path", "root") if record.get(name) is not None}
    return SourceImage(**{**record, **paths})


def relative(path: Path, base: Path) -> str:
    """A path as seen from a folder; links are not followed.

    >>> relative(Path("/data/iu/png/1.png"), Path("/data/iu/reports"))
    '../png/1.png'
    """
    return os.path.relpath(path, base)
