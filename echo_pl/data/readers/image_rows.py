"""Tables with one row per image: which rows make a study.

The rows of a study need not stand together (those of CheXpert-Plus do not), and a table with all reports may not fit in memory.
So it is read twice: once for the names of the images, once for the rest, of which a study's first row counts. Knows rows;
nothing of reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from echo_pl.data.readers.reader import Reject
from echo_pl.data.readers.reading import Entry, View
from echo_pl.data.readers.tables import Row


class ImageRows(NamedTuple):
    """A study's first row, and its images in the table's order."""

    first: Mapping[str, str]
    views: tuple[View, ...]


def gather_rows(
    rows: Callable[[], Iterator[Row | Reject]],
    study: Callable[[Mapping[str, str]], str],
    view: Callable[[Mapping[str, str]], View],
) -> Iterator[Entry[ImageRows] | Reject]:
    """Yield each study at the place of its first row.

    A row without a study is rejected (``missing_value``), and so is a row that names an image again (``duplicate_id``).

    Args:
        rows: reads the table anew.
        study: a row's study; empty where there is none.
        view: a row's image.
    """
    views: dict[str, list[View]] = {}
    again: dict[int, str] = {}
    # Only for as long as it takes: a set per study would outweigh what it holds.
    images: set[str] = set()
    for row in rows():
        if isinstance(row, Reject) or not (name := study(row.values)):
            continue
        one = view(row.values)
        if one.file in images:
            again[row.line] = one.file
            views.setdefault(name, [])
            continue
        images.update([one.file] if one.file else [])
        views.setdefault(name, []).append(one)
    images.clear()
    for row in rows():
        if isinstance(row, Reject):
            yield row
        elif not (name := study(row.values)):
            yield Reject(key=f"line {row.line}", reason="missing_value", detail="it has no study")
        elif row.line in again:
            yield Reject(key=name, reason="duplicate_id", detail=f"line {row.line} names {again[row.line]} again")
        elif name in views:
            yield Entry(name=name, content=ImageRows(row.values, tuple(views.pop(name))))
