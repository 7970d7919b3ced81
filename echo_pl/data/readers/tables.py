"""Tables of datasets: CSV and JSON lines, row by row, and tables with one row per image.

A missing column is an error; a damaged row is a :class:`Reject`.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from echo_pl.data.readers.reader import NamedImage, Reject, SourceEntry
from echo_pl.data.readers.text_files import open_text

MISSING: Final = frozenset({"", "nan", "none", "null", "n/a", "na"})
"""Lower-case contents of a cell without a value."""
MAX_COLUMN: Final = 48
"""Characters of a column's name. Anything longer is not shown in a message."""


class TableRow(NamedTuple):
    """One row; a tuple, as there are as many as images."""

    line: int
    """Line of the file, from 1."""
    values: Mapping[str, str]
    """Cell of each column; empty without a value."""


class ImageRows(NamedTuple):
    """First row of a study, and its images in the table's order."""

    first: Mapping[str, str]
    images: tuple[NamedImage, ...]


def find_file(root: Path, *names: str, what: str) -> Path:
    """Return the first of several files that exists, or raise FileNotFoundError."""
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"no {what} in {root}: {' or '.join(names)} is expected there")


def find_folder(root: Path, *names: str, what: str, given: Path | str | None = None) -> Path:
    """Return the given folder, or else the first of several that exists.

    Raises:
        FileNotFoundError: If it does not exist; the message names all.
    """
    if given is not None:
        names = (str(Path(given).absolute()),)
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"no {what} in {root}: the folder {' or '.join(names)} is expected there; give its path")


def read_csv(path: Path, required: Collection[str]) -> Iterator[TableRow | Reject]:
    """Yield the rows of a CSV file, also a gzipped one. A comma that ends a line adds no cell.

    Raises:
        ValueError: If required columns are missing; the message names them and those found.
    """
    with open_text(path) as stream:
        rows = csv.reader(stream)
        header = [name.strip() for name in _header(rows, path)]
        while header and not header[-1]:
            header.pop()
        check_columns(path, required, header)
        while True:
            before = rows.line_num
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield Reject(key=path.name, reason="damaged_row", detail=f"line {before + 1}: {error}")
                continue
            except (OSError, EOFError, UnicodeError, zlib.error) as error:
                yield Reject(key=path.name, reason="damaged_file", detail=f"after line {before}: {error}")
                return
            if not cells:
                continue
            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            if len(cells) != len(header):
                detail = f"line {before + 1} has {len(cells)} cells, the header {len(header)}"
                yield Reject(key=path.name, reason="damaged_row", detail=detail)
                continue
            yield TableRow(before + 1, dict(zip(header, cells, strict=True)))


def readable_rows(rows: Iterable[TableRow | Reject], damaged: list[Reject]) -> Iterator[Mapping[str, str]]:
    """Yield the cells of readable rows, and append the rejects to a list that the caller yields later."""
    for row in rows:
        if isinstance(row, Reject):
            damaged.append(row)
        else:
            yield row.values


def read_jsonl(path: Path, required: Collection[str]) -> Iterator[TableRow | Reject]:
    """Yield the objects of a JSON lines file as rows; lists are joined by ``|``.

    Raises:
        ValueError: If the first object lacks columns; the message names them and those found.
    """
    checked = False
    with open_text(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                yield Reject(key=path.name, reason="damaged_row", detail=f"line {number} is no JSON object")
                continue
            if not checked:
                check_columns(path, required, record)
                checked = True
            cells = {str(name): _cell(value) for name, value in record.items()}
            yield TableRow(number, dict.fromkeys(required, "") | cells)


def gather_rows(
    read: Callable[[], Iterator[TableRow | Reject]],
    study: Callable[[Mapping[str, str]], str],
    image: Callable[[Mapping[str, str]], NamedImage],
) -> Iterator[SourceEntry[ImageRows] | Reject]:
    """Yield each study of a table with one row per image, at the place of its first row.

    Rows of a study need not be adjacent, and reports may not fit in memory. So the table is read twice: first the names of
    the images, then the first row of each study. A row without a study or with a repeated image is rejected.

    Args:
        read: Function that reads the table from its start.
        study: Study of a row; empty if there is none.
        image: Image of a row.
    """
    images_of: dict[str, list[NamedImage]] = {}
    repeated: dict[int, str] = {}
    seen: set[str] = set()  # one set for all studies: a set for each would outweigh its content
    for row in read():
        if isinstance(row, Reject) or not (name := study(row.values)):
            continue
        one = image(row.values)
        images = images_of.setdefault(name, [])
        if one.file in seen:
            repeated[row.line] = one.file
            continue
        seen.update([one.file] if one.file else [])
        images.append(one)
    seen.clear()
    for row in read():
        if isinstance(row, Reject):
            yield row
        elif not (name := study(row.values)):
            yield Reject(key=f"line {row.line}", reason="missing_value", detail="it has no study")
        elif row.line in repeated:
            yield Reject(key=name, reason="duplicate_id", detail=f"line {row.line} names {repeated[row.line]} again")
        elif name in images_of:
            yield SourceEntry(name=name, content=ImageRows(row.values, tuple(images_of.pop(name))))


def check_columns(path: Path, required: Collection[str], found: Collection[str]) -> None:
    """Raise ValueError, with their names, if columns are missing."""
    if missing := [name for name in required if name not in found]:
        # In a file without a header the first row is data, and may contain a report.
        shown = [name if len(name) <= MAX_COLUMN else f"({len(name)} characters)" for name in found]
        raise ValueError(f"{path} lacks the columns {missing}; it has {shown}")


def filled(cell: str) -> str:
    """Strip a cell; empty if it only marks a missing value.

    >>> filled(" nan "), filled("PA ")
    ('', 'PA')
    """
    stripped = cell.strip()
    return "" if stripped.lower() in MISSING else stripped


def _header(rows: Iterator[list[str]], path: Path) -> list[str]:
    try:
        return next(rows, [])
    except (OSError, EOFError, UnicodeError, zlib.error, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}; get it again") from error


def _cell(value: object) -> str:
    if isinstance(value, list):
        return "|".join(_cell(one) for one in value)
    return "" if value is None else str(value)
