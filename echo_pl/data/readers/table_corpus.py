"""Any table of reports with a folder of images, for data without a reader of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import Final, Literal

from echo_pl.data.readers.reader import (
    NamedImage,
    Reject,
    SourceEntry,
    SourceStudy,
    find_images,
    official_split,
    read_studies,
    require,
    text_report,
)
from echo_pl.data.readers.sections import split_sections
from echo_pl.data.readers.tables import ImageRows, TableRow, filled, gather_rows, read_csv, read_jsonl

SPLITS: Final = {"train": "train", **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"), "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns; empty if there is none."""

    key: str = "id"
    image: str = "image"
    """File names relative to the folder of images, joined by the separator."""
    findings: str = "findings"
    impression: str = "impression"
    report: str = ""
    """Whole report, divided by its headings; instead of findings and impression."""
    indication: str = ""
    comparison: str = ""
    technique: str = ""
    patient: str = ""
    """Empty: every study is a patient of its own."""
    split: str = ""
    view: str = ""
    labels: str = ""
    modality: str = ""
    language: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            raise ValueError("columns.key must be named: without ids studies cannot be distinguished")
        if not (self.findings or self.impression or self.report):
            raise ValueError("columns must name findings, impression or report")

    @property
    def named(self) -> tuple[str, ...]:
        """Columns that a table must have; with ``report`` those of its sections are optional."""
        every = {field.name: str(getattr(self, field.name)) for field in fields(self)}
        unread = ("findings", "impression") if self.report else ()
        return tuple(dict.fromkeys(column for name, column in every.items() if column and name not in unread))


class TableReader:
    """Any table of reports with a folder of images: CSV or JSON lines, with the names of its columns as options.

    For a hospital's own export, and for public sets without a reader of their own. One row is one study, or one image of one.

    Args:
        source: A ``.csv``, ``.csv.gz`` or ``.jsonl`` file.
        images: Folder of images; None: the table's own.
        columns: Names of the columns.
        rows: Meaning of a row.
        separator: Text between file names, and between labels, in one cell.
        name: Name of the corpus.
        licence: Licence for the dataset card.
        citation: Citation for the dataset card.
    """

    def __init__(
        self,
        source: Path | str,
        *,
        images: Path | str | None = None,
        columns: Columns | Mapping[str, str] | None = None,
        rows: Literal["study", "image"] = "study",
        separator: str = "|",
        name: str = "table",
        licence: str = "unknown",
        citation: str = "",
    ) -> None:
        self._source = Path(source)
        if not self._source.is_file():
            raise FileNotFoundError(f"no table at {source}")
        if not self._source.name.removesuffix(".gz").endswith((".csv", ".jsonl")):
            raise ValueError(f"the table must be a .csv or a .jsonl, got {self._source.name}")
        if rows not in ("study", "image"):
            raise ValueError(f"rows must be 'study' or 'image', got {rows!r}")
        if not separator:
            raise ValueError("separator must not be empty")
        self._images = self._source.parent if images is None else Path(images)
        if not self._images.is_dir():
            raise FileNotFoundError(f"no folder of images at {self._images}")
        self._columns = columns if isinstance(columns, Columns) else _columns(columns or {})
        self._rows = rows
        self._separator = separator
        self.name = name
        self.licence = licence
        self.citation = citation

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield the studies in the order of their (first) rows."""
        entries = self._entries() if self._rows == "study" else gather_rows(self._read, self._key, self._image)
        return read_studies(entries, self._make, skip=skip)

    def _read(self) -> Iterator[TableRow | Reject]:
        read = read_jsonl if ".jsonl" in self._source.suffixes else read_csv
        return read(self._source, self._columns.named)

    def _key(self, row: Mapping[str, str]) -> str:
        return filled(row[self._columns.key])

    def _image(self, row: Mapping[str, str]) -> NamedImage:
        return NamedImage(self._cell(row, "image"), self._cell(row, "view"))

    def _entries(self) -> Iterator[SourceEntry[ImageRows] | Reject]:
        for row in self._read():
            if isinstance(row, Reject):
                yield row
                continue
            files = self._list(row.values, "image")
            views = self._list(row.values, "view")[: len(files)]
            images = tuple(NamedImage(*one) for one in zip_longest(files, views, fillvalue=""))
            yield SourceEntry(name=self._key(row.values), content=ImageRows(row.values, images))

    def _make(self, key: str, rows: ImageRows) -> SourceStudy:
        row, columns = rows.first, self._columns
        patient = self._cell(row, "patient") if columns.patient else key
        require({columns.patient: patient})
        split = official_split(self._cell(row, "split").lower(), SPLITS, columns.split) if columns.split else None
        named = {name: self._cell(row, name) for name in ("findings", "impression", "indication", "comparison", "technique")}
        report = text_report(**named)
        if columns.report:
            others = {name: text for name, text in named.items() if text and name not in ("findings", "impression")}
            report = replace(split_sections(row[columns.report]), **others)
        images, lost = find_images(rows.images, self._images) if columns.image else ((), ())
        return SourceStudy(
            key=key,
            patient=patient,
            images=images,
            lost=lost,
            report=report,
            split=split,
            modality=self._cell(row, "modality"),
            language=self._cell(row, "language") or "en",
            labels=self._list(row, "labels"),
        )

    def _cell(self, row: Mapping[str, str], name: str) -> str:
        column = str(getattr(self._columns, name))
        return filled(row.get(column, "")) if column else ""

    def _list(self, row: Mapping[str, str], name: str) -> tuple[str, ...]:
        return tuple(part for one in self._cell(row, name).split(self._separator) if (part := filled(one)))


def _columns(named: Mapping[str, str]) -> Columns:
    known = [field.name for field in fields(Columns)]
    if unknown := [name for name in named if name not in known]:
        raise ValueError(f"columns names {unknown}, known are {known}")
    return Columns(**named)
