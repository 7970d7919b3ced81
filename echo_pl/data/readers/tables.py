"""CSV and JSON lines of a dataset, row by row: the columns that must be there are, and a damaged row is not the end.

Knows files, rows and names of columns; nothing of studies.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from echo_pl.data.readers.reader import Reject
from echo_pl.data.readers.text_files import open_text

MISSING: Final = frozenset({"", "nan", "none", "null", "n/a", "na"})
"""What stands in a cell that has no value, lower case."""


MAX_COLUMN: Final = 48
"""Characters of a column's name. Anything longer is none, and is not shown."""


class Row(NamedTuple):
    """One row; a tuple and no dataclass, as there are as many as images."""

    line: int
    """Of the file, from 1."""
    values: Mapping[str, str]
    """Column to cell; empty where there is none."""


def find_file(root: Path, *names: str, what: str) -> Path:
    """Return the first of these files that is in the folder.

    Raises:
        FileNotFoundError: none is; the message names all.
    """
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"no {what} in {root}: {' or '.join(names)} is expected there")


def find_folder(root: Path, *names: str, what: str) -> Path:
    """Return the first of these folders that is there.

    Raises:
        FileNotFoundError: none is; the message names all.
    """
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"no {what} in {root}: the folder {' or '.join(names)} is expected there; say which it is")


def read_csv(path: Path, required: Collection[str]) -> Iterator[Row | Reject]:
    """Yield the rows of a CSV file, also a gzipped one. A comma at a line's end, with nothing behind it, is no cell.

    Args:
        path: with a first row of names.
        required: columns that must be there; others come along.

    Raises:
        ValueError: columns are missing; the message names them and those found.
    """
    with open_text(path) as stream:
        rows = csv.reader(stream)
        header = [name.strip() for name in _next(rows, path) or ()]
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
            yield Row(before + 1, dict(zip(header, cells, strict=True)))


def whole_rows(rows: Iterable[Row | Reject], damaged: list[Reject]) -> Iterator[Mapping[str, str]]:
    """Yield the cells of the rows that can be read, and put the others into a list: for a table that is read before another."""
    for row in rows:
        if isinstance(row, Reject):
            damaged.append(row)
        else:
            yield row.values


def read_jsonl(path: Path, required: Collection[str]) -> Iterator[Row | Reject]:
    """Yield the objects of a JSON lines file as rows; lists are joined by ``|``.

    Raises:
        ValueError: the first object lacks columns; the message names them and those found.
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
            cells = {str(name): _as_cell(value) for name, value in record.items()}
            yield Row(number, dict.fromkeys(required, "") | cells)


def check_columns(path: Path, required: Collection[str], found: Collection[str]) -> None:
    """Refuse a file that lacks columns.

    Raises:
        ValueError: it does.
    """
    if missing := [name for name in required if name not in found]:
        # Of a file without a header the first row stands here, and it may be a report.
        told = [name if len(name) <= MAX_COLUMN else f"({len(name)} characters)" for name in found]
        raise ValueError(f"{path} lacks the columns {missing}; it has {told}")


def filled(cell: str) -> str:
    """Return a cell without its edges; empty if it only says that there is no value.

    >>> filled(" nan "), filled("PA ")
    ('', 'PA')
    """
    stripped = cell.strip()
    return "" if stripped.lower() in MISSING else stripped


def _next(rows: Iterator[list[str]], path: Path) -> list[str] | None:
    try:
        return next(rows, None)
    except (OSError, EOFError, UnicodeError, zlib.error, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}; get it again") from error


def _as_cell(value: object) -> str:
    if isinstance(value, list):
        return "|".join(_as_cell(one) for one in value)
    return "" if value is None else str(value)
