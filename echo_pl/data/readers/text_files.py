"""Text of a dataset's files, whatever bytes it is made of: UTF-8 first, byte by byte Windows-1252 where it is not.

Files are opened with bytes that are no UTF-8 kept apart (as lone surrogates, PEP 383), so that one bad byte costs neither its
row nor its file; :func:`mend` reads and counts them. Knows nothing of reports or columns.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
from pathlib import Path
from typing import Final, TextIO

_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ESCAPED: Final = re.compile("[\udc80-\udcff]+")
# NUL and the like stand in no text: the file is UTF-16 without its mark, or no text at all.
_NO_TEXT: Final = re.compile("[\x00-\x08\x0e-\x1f]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class UndecodableTextError(ValueError):
    """What should be text is none."""


def open_text(path: Path) -> TextIO:
    """Open a text file, also a gzipped one, with its line ends as they are.

    UTF-8 with or without a mark, UTF-16 with one; other bytes come as lone surrogates, for :func:`mend`.
    """
    binary = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115  # the caller closes
    buffered = io.BufferedReader(binary)
    encoding = "utf-16" if buffered.peek(2)[:2] in _UTF16 else "utf-8-sig"
    return io.TextIOWrapper(buffered, encoding=encoding, errors="surrogateescape", newline="")


def decode(content: bytes) -> str:
    """Decode a whole file as :func:`open_text` does."""
    return content.decode("utf-16" if content[:2] in _UTF16 else "utf-8-sig", errors="surrogateescape")


def mend(text: str) -> tuple[str, int]:
    """Read the bytes that were no UTF-8 as Windows-1252, or as Latin-1 where that has no character.

    Returns:
        The text, and how many bytes were read so.

    Raises:
        UndecodableTextError: it holds characters that stand in no text.
    """
    if _NO_TEXT.search(text):
        raise UndecodableTextError("it holds NUL or control characters")
    if text.isascii():
        return text, 0
    mended, count = text, 0
    if _ESCAPED.search(text):
        count = sum(len(run) for run in _ESCAPED.findall(text))
        mended = _ESCAPED.sub(_read_bytes, text)
    if _SURROGATE.search(mended):
        raise UndecodableTextError("it holds half a surrogate pair")
    return mended, count


def _read_bytes(run: re.Match[str]) -> str:
    content = run.group().encode("utf-8", errors="surrogateescape")
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError:
        return content.decode("latin-1")
