"""Text of a dataset's files in mixed encodings: UTF-8, and Windows-1252 for single bytes that are not UTF-8.

Such bytes are kept as lone surrogates (PEP 383), so that one bad byte costs neither its row nor its file. :func:`mend` decodes
and counts them.
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
# Text contains no NUL and the like: the file is UTF-16 without its mark, or binary.
_NO_TEXT: Final = re.compile("[\x00-\x08\x0e-\x1f]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class UndecodableTextError(ValueError):
    """Content that should be text is not."""


def open_text(path: Path) -> TextIO:
    """Open a text file, also a gzipped one, with its line ends unchanged and undecodable bytes as lone surrogates."""
    binary = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115  # the caller closes
    buffered = io.BufferedReader(binary)
    return io.TextIOWrapper(buffered, encoding=_encoding(buffered.peek(2)), errors="surrogateescape", newline="")


def decode(content: bytes) -> str:
    """Decode a whole file as :func:`open_text` does."""
    return content.decode(_encoding(content), errors="surrogateescape")


def mend(text: str) -> tuple[str, int]:
    """Decode bytes that are not UTF-8 as Windows-1252, or as Latin-1 if that has no such character.

    Returns:
        The text, and the number of such bytes.

    Raises:
        UndecodableTextError: If it contains control characters or half a surrogate pair.
    """
    if _NO_TEXT.search(text):
        raise UndecodableTextError("it holds NUL or control characters")
    if text.isascii():
        return text, 0
    mended, count = text, 0
    if _ESCAPED.search(text):
        count = sum(len(run) for run in _ESCAPED.findall(text))
        mended = _ESCAPED.sub(_decode_run, text)
    if _SURROGATE.search(mended):
        raise UndecodableTextError("it holds half a surrogate pair")
    return mended, count


def _encoding(start: bytes) -> str:
    return "utf-16" if start[:2] in _UTF16 else "utf-8-sig"


def _decode_run(run: re.Match[str]) -> str:
    content = run.group().encode("utf-8", errors="surrogateescape")
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError:
        return content.decode("latin-1")
