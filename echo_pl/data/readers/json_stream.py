"""The entries of one large JSON file, a list or an object, one after the other in bounded memory.

The standard library's parser does the parsing, entry by entry: the metadata of a large dataset is one object of some hundred
MB. Unlike ``json.load`` it shows a name that stands there twice, and bytes that are no UTF-8 cost one entry's text and not the
file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TextIO

from echo_pl.data.readers.reader import Reject
from echo_pl.data.readers.text_files import open_text

CHUNK: Final = 1 << 20
MAX_ENTRY: Final = 1 << 24
"""Characters. A longer entry is a file that is damaged."""
_DECODER: Final = json.JSONDecoder()
_SPACE: Final = " \t\r\n"


def read_entries(path: Path) -> Iterator[tuple[str, Any] | Reject]:
    """Yield name and value of the entries of an object, or place (from 0) and value of those of a list.

    Behind a damaged place nothing can be read: it is a :class:`Reject` and the end.

    Raises:
        ValueError: the file is neither a list nor an object.
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
    """The part of the file that is being looked at."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._text = ""
        self._at = 0

    def take_mark(self, marks: str) -> str:
        """Take one of these characters if it comes next; empty if not."""
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
        """Take one of these characters.

        Raises:
            ValueError: another comes next.
        """
        if found := self.take_mark(marks):
            return found
        raise ValueError(f"one of {marks!r} is expected")

    def take_value(self) -> Any:
        """Take a value.

        Raises:
            ValueError: there is none, or it does not end.
        """
        self.take_mark("")
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except ValueError:
                if len(self._text) - self._at > MAX_ENTRY or not self._more():
                    raise
                continue
            # A number at the window's end may go on behind it: 12 | .5, 12. | 5, 1e+ | 5.
            if len(self._text) - end < 3 and self._more():
                continue
            self._at = end
            return value

    def _more(self) -> bool:
        """Read on; false at the file's end, where nothing changes."""
        chunk = self._stream.read(CHUNK)
        if chunk:
            self._text = self._text[self._at :] + chunk
            self._at = 0
        return bool(chunk)
