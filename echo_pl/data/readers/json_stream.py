"""Entries of one large JSON file, a list or an object, in bounded memory, and values of a JSON record.

The metadata of a large dataset is one object of some hundred MB. Unlike ``json.load`` this shows a repeated name, and bytes
that are not UTF-8 cost the text of one entry only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

from echo_pl.data.readers.reader import Reject, RejectedError, SourceEntry
from echo_pl.data.readers.tables import filled
from echo_pl.data.readers.text_files import open_text

CHUNK: Final = 1 << 20
MAX_ENTRY: Final = 1 << 24
"""Characters. A longer entry means a damaged file."""
_DECODER: Final = json.JSONDecoder()
_SPACE: Final = " \t\r\n"


def read_entries(path: Path) -> Iterator[tuple[str, Any] | Reject]:
    """Yield name and value of an object's entries, or index and value of a list's; a damaged place is a reject and the end.

    Raises:
        ValueError: If the file is neither a list nor an object.
    """
    with open_text(path) as stream:
        window = _Window(stream)
        opening = window.take_mark("[{")
        if not opening:
            raise ValueError(f"{path} holds neither a JSON list nor a JSON object")
        closing = "]" if opening == "[" else "}"
        count = 0
        try:
            if window.take_mark(closing):
                return
            while True:
                name = str(count)
                if opening == "{":
                    name = str(window.take_value())
                    window.expect(":")
                yield name, window.take_value()
                count += 1
                if window.expect("," + closing) == closing:
                    return
        except (ValueError, OSError, EOFError) as error:
            yield Reject(key=path.name, reason="damaged_file", detail=f"after entry {count}: {type(error).__name__}")


class _Window:
    """Part of the file that is parsed now."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._text = ""
        self._at = 0

    def take_mark(self, marks: str) -> str:
        """Take one of these characters if it comes next; otherwise return an empty text."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._more():
                break
        found = self._text[self._at : self._at + 1]
        if not found or found not in marks:
            return ""
        self._at += 1
        return found

    def expect(self, marks: str) -> str:
        """Take one of these characters, or raise ValueError."""
        if found := self.take_mark(marks):
            return found
        raise ValueError(f"one of {marks!r} is expected")

    def take_value(self) -> Any:
        """Take a value, or raise ValueError."""
        self.take_mark("")
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except ValueError:
                if len(self._text) - self._at > MAX_ENTRY or not self._more():
                    raise
                continue
            # A number at the window's end may continue after it: 12 | .5, 12. | 5, 1e+ | 5.
            if len(self._text) - end < 3 and self._more():
                continue
            self._at = end
            return value

    def _more(self) -> bool:
        """Read the next chunk; False at the file's end, where nothing changes."""
        chunk = self._stream.read(CHUNK)
        if chunk:
            self._text = self._text[self._at :] + chunk
            self._at = 0
        return bool(chunk)


def read_records(path: Path, id_name: str) -> Iterator[SourceEntry[Mapping[str, Any]] | Reject]:
    """Yield the objects of a JSON list, with one of their values as their name."""
    for item in read_entries(path):
        if isinstance(item, Reject):
            yield item
            continue
        place, record = item
        if isinstance(record, Mapping):
            name = record.get(id_name)
            yield SourceEntry(name="" if name is None else str(name), content=record)
        else:
            yield Reject(key=f"entry {place}", reason="damaged_row", detail="it is no object")


def text_of(record: Mapping[str, Any], name: str) -> str:
    """Return a value as text, empty if it is missing; raise RejectedError for a list or an object."""
    return _text(record.get(name), name)


def texts_of(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return the texts of a list, or one text as a list; raise RejectedError for values of other types."""
    value = record.get(name)
    if isinstance(value, list):
        return tuple(_text(one, name) for one in value)
    text = _text(value, name)
    return (text,) if text else ()


def objects_of(record: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], ...]:
    """Return a list of objects; raise RejectedError if it is missing or something else."""
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
