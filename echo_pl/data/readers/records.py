"""Values of a JSON record of a dataset: text where text should be, or a reject."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from echo_pl.data.readers.json_stream import read_entries
from echo_pl.data.readers.reader import Reject
from echo_pl.data.readers.reading import Entry, RejectedError
from echo_pl.data.readers.tables import filled


def records_of(path: Path, id_name: str) -> Iterator[Entry[Mapping[str, Any]] | Reject]:
    """Yield the objects of a JSON file that is a list of them, named by one of their values."""
    for item in read_entries(path):
        if isinstance(item, Reject):
            yield item
            continue
        place, record = item
        if isinstance(record, Mapping):
            name = record.get(id_name)
            yield Entry(name="" if name is None else str(name), content=record)
        else:
            yield Reject(key=f"entry {place}", reason="damaged_row", detail="it is no object")


def text_of(record: Mapping[str, Any], name: str) -> str:
    """Return a value as text; empty where there is none.

    Raises:
        RejectedError: it is a list or an object.
    """
    return _text(record.get(name), name)


def texts_of(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a list's values as texts; empty where there is none. One text is a list of one.

    Raises:
        RejectedError: it is an object, or holds something that is no text.
    """
    value = record.get(name)
    if isinstance(value, list):
        return tuple(_text(one, name) for one in value)
    text = _text(value, name)
    return (text,) if text else ()


def objects_of(record: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], ...]:
    """Return a list of objects.

    Raises:
        RejectedError: it is not there, or is something else.
    """
    value = record.get(name)
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise RejectedError("missing_value" if value is None else "wrong_type", name)
    return tuple(value)


def _text(value: object, name: str) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, str | int | float):
        return filled(str(value))
    raise RejectedError("wrong_type", name)
