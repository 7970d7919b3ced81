"""A small dataset and simple components for tests of the pipeline, picklable so that other processes can have them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw

from echo_pl.data.pipeline.components import Components, RefusedError
from echo_pl.data.readers.table_corpus import Columns, TableReader
from echo_pl.reports.completeness import Problem
from echo_pl.reports.near_duplicates import Duplicate
from echo_pl.reports.regions import REGIONS
from echo_pl.reports.report import NormalizedReport, RawReport, Statement

COLUMNS = {"patient": "patient", "labels": "labels", "modality": "modality", "language": "language"}
WORDS = {"thorax": "wall", "mediastinum": "trachea", "lungs": "lung", "heart": "heart", "hila": "hilar", "diaphragm": "angle"}
GARBLED, LOSSY, SECRET = "garbled", "lossy", "Zebulon"


def row(number: int, **values: str) -> dict[str, str]:
    """One study of a table; four studies of the same patient follow each other."""
    sentence = ("the left lung is small.", "the heart is large.", "a rib is broken.", "hilar shadows are dense.")[number % 4]
    return {
        "id": f"s{number:04d}",
        "image": f"{number}.png",
        "findings": f"{sentence} Seen {number} times.",
        "impression": f"case {number}.",
        "patient": f"p{number // 4}",
        "labels": ("small lung", "large heart", "fracture", "")[number % 4],
        "modality": "DX",
        "language": "en",
        **values,
    }


def write_dataset(folder: Path, rows: Iterable[dict[str, str]], *, size: int = 24) -> Path:
    """Write a table and an image for each row; return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    for number, one in enumerate(rows):
        for name in filter(None, one["image"].split("|")):
            image = Image.new("L", (size, size + 3), number % 200)
            ImageDraw.Draw(image).ellipse((2, 3, 9 + number % 11, 17), fill=250 - number % 100)
            image.save(folder / name)
    table = folder / "table.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return table


@dataclass(frozen=True)
class KeywordEngine:
    """Normalizer that assigns sentences to regions by one word, and imputes the other regions."""

    name: str = "keywords-1"

    def build(self) -> KeywordEngine:
        return self

    def normalize_many(self, reports: Iterable[RawReport]) -> Iterator[NormalizedReport | RefusedError]:
        for report in reports:
            yield RefusedError("garbled", "it has no words") if GARBLED in report.findings else _normalized(report)


def _normalized(report: RawReport) -> NormalizedReport:
    found = [one.strip() + "." for one in report.findings.split(".") if one.strip()]
    statements = []
    for region in REGIONS:
        own = [one for one in found if WORDS.get(region.name, "rib") in one]
        statements += [Statement(section=region.name, text=one, source=one) for one in own]
        if not own:
            statements.append(Statement(section=region.name, text=region.normal[0], imputed=True))
    return NormalizedReport(statements=tuple(statements), impression=report.impression, dropped={"technique": 1})


@dataclass(frozen=True)
class WordCheck:
    """Finds what is wrong with reports of one kind."""

    name: str = "check-1"

    def build(self) -> WordCheck:
        return self

    def problems(self, raw: RawReport, normalized: NormalizedReport) -> list[Problem]:
        return [Problem(name=name, detail="") for name in ("lost_number", "lost_device") if LOSSY in raw.findings]


def redact(report: RawReport) -> tuple[RawReport, dict[str, int]]:
    clean = replace(report, findings=report.findings.replace(SECRET, ""), impression=report.impression.replace(SECRET, ""))
    return clean, {"name": (report.findings + report.impression).count(SECRET)}


@dataclass(frozen=True)
class Interpreter:
    """Says one thing in Chinese, but for reports of one kind."""

    name: str = "interpreter-1"

    def build(self) -> Interpreter:
        return self

    def translate_many(self, reports: Iterable[NormalizedReport]) -> Iterator[NormalizedReport | RefusedError]:
        for report in reports:
            if "rib" in report.text.findings:
                yield RefusedError("timeout", "no answer")
            else:
                translated = tuple(replace(one, text="双肺清晰。") for one in report.statements)
                yield replace(report, statements=translated, impression="正常。", language="zh")


@dataclass(frozen=True)
class EqualTexts:
    """Calls texts duplicates that begin with the same so many letters."""

    letters: int = 12
    name: str = "prefix-1"

    def find(
        self, train: Iterable[tuple[str, str]], held_out: Iterable[tuple[str, str]], threshold: float, kept: Path
    ) -> Iterator[Duplicate]:
        seen: dict[str, str] = {}
        for key, text in train:
            first = seen.setdefault(text[: self.letters], key)
            if first != key:
                yield Duplicate(key=key, of=first, held_out=False, cosine=threshold)


def count_words(texts: Iterable[str], folder: Path) -> None:
    """In the place of a tokenizer: one file that depends on every text."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({"texts": list(texts)}), encoding="utf-8")


def make_components(table: Path, **changes: object) -> Components:
    """Components for a dataset that :func:`write_dataset` made."""
    components = Components(
        source=table,
        reader=TableReader(table, columns=Columns(**COLUMNS), name="look-alike", licence="CC0", citation="nobody"),
        engine=KeywordEngine(),
        check=WordCheck(),
        tokenizer=count_words,
        tokenizer_name="words-1",
    )
    return replace(components, **changes)
