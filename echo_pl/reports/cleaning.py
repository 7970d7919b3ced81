"""Cleaning of report text from a hospital's system, and its language.

HTML, encodings, spaces and de-identification marks; every change is counted.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

from echo_pl.reports.response import Language
from echo_pl.reports.tables import read_table, words_of

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>|<!--.*?-->", re.DOTALL)
_UNREAD = re.compile(r"<(script|style)\b[^<>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
"""HTML elements without text."""
_BLOCK = re.compile(r"<\s*/?\s*(?:br|p|div|li|tr|h[1-6])\b[^<>]*>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,6}|#x[0-9a-fA-F]{1,6}|[A-Za-z]{2,10});")
_ODD_SPACE = re.compile(r"[^\S\n ]|[\u200b-\u200f\u2060\ufeff\x00-\x08\x0b\x0c\x0e-\x1f]|  +")
_PARAGRAPH = re.compile(r"\s*\n\s*\n\s*")
_HEADED_LINE = re.compile(r"\n(?=[ \t]*[A-Z][A-Za-z /]{2,30}:|[ \t]*\d{1,2}[.)]\s|[ \t]*[-*\u2022]\s)")
"""Line end before a heading, a number or a bullet; other single ones are wrapped text."""
_LIST_ITEM = re.compile(r"(?<!\S)\(?(\d{1,2})[.)](?=\s*[^\W\d])")
_COUNTED = re.compile(
    r"(?:[,&x-]|\b(?:and|or|to|through|of|than|at|is|are|least|about|approximately|level|grade|stage|type|number|ribs?|total))\s*$",
    re.IGNORECASE,
)
"""A number after this ends a sentence ("ribs 1 and 2.") and begins no list item."""
_SPACES = re.compile(r"[^\S\n]+|(?<!\n)\n(?!\n)|[\u200b-\u200f\u2060\ufeff\x00-\x08\x0b\x0c\x0e-\x1f]")
_DOUBLE_MARKS = re.compile(r"([.,;])(?:\s*[.,;])+")
_MOJIBAKE = re.compile("[\u00c2\u00c3\u00e2][\u0080-\u00bf\u20ac\u2122\u0153\u201c\u201d\u02dc\u2018\u2019\u0161]")
_PLAIN: Final = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "-",
        "\u00a0": " ",
        "\u2026": "...",
        "\ufffd": "",
    }
)
_MARK = r"(?:x-)?(?:<?\bX{3,}\b>?|_{2,}|\[\*\*[^\]]{0,80}\*\*\])"
_DANGLING = (
    r"(?:(?:\b(?:dated|since|from|of|on|at|by|in|to|with|than|compared to|compared with)\s+)?(?:\b(?:the|a|an)\s+)?"
    r"(?:\bDrs?\.?\s+)?)"
)
_MARKS = re.compile(
    rf"{_DANGLING}{_MARK}(?:[\s,/]+{_MARK})*(?=\s*(?:[.;:)]|,|$|\b(?:is|are|was|were|and|or|in|of|on|at|with|from|to|by)\b))|{_MARK}",
    re.IGNORECASE,
)
_ANY_MARK = re.compile(_MARK, re.IGNORECASE)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_LETTER = re.compile(r"[^\W\d_]")
_WORDS: Final = read_table("words")
_ENGLISH_WORDS: Final = words_of(_WORDS["english"])
_FOREIGN_WORDS: Final = words_of(_WORDS["foreign"])


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A clean text, and the number of changes."""

    text: str
    counts: Counter[str]
    """By kind: html, encoding, whitespace, deidentification."""


def is_chinese(text: str) -> bool:
    """Return True if the text has at least half as many Chinese characters as Latin words."""
    chinese = len(_CHINESE.findall(text)) if not text.isascii() else 0
    return chinese > 0 and chinese * 2 >= len(re.findall(r"[A-Za-z]+", text))


class OtherLanguageError(ValueError):
    """A report is neither in English nor in Chinese, or in both."""


def language_of(text: str) -> Language:
    """Return the language; raise OtherLanguageError if it is neither English nor Chinese."""
    if is_chinese(text):
        return "zh"
    if not text.isascii():
        letters = _LETTER.findall(text)
        if sum(not one.isascii() for one in letters) > 0.1 * max(len(letters), 1):
            raise OtherLanguageError("the report is neither in English nor in Chinese: too many letters of another writing")
    words = re.findall(r"[a-z]+", text.lower())
    english = sum(word in _ENGLISH_WORDS for word in words)
    foreign = sum(word in _FOREIGN_WORDS for word in words)
    if foreign > max(english, 1):
        raise OtherLanguageError("the report is neither in English nor in Chinese: it has more words of another language")
    return "en"


def _decoded(text: str) -> tuple[str, int]:
    """Undo UTF-8 that was decoded as Windows-1252; return the text and the number of repairs."""
    count = 0

    def undo(found: re.Match[str]) -> str:
        nonlocal count
        try:
            right = found[0].encode("cp1252").decode("utf-8")
        except (UnicodeEncodeError, UnicodeDecodeError):
            return found[0]
        count += 1
        return right

    return re.sub(
        "[\u00c2-\u00f4][\u0080-\u00bf\u20ac\u2122\u0153\u201a\u201c\u201d\u02dc\u2018\u2019\u0161]{1,3}", undo, text
    ), count


def _itemized(text: str) -> str:
    """Make paragraphs of the items of a list that is numbered from 1 in running text."""
    places, due = [], 1
    for item in _LIST_ITEM.finditer(text):
        number = int(item[1])
        if number in (1, due) and not _COUNTED.search(text[: item.start()]):
            places.append(item.start())
            due = number + 1
    if len(places) < 2:
        return text
    bounds = zip([0, *places], [*places, len(text)], strict=True)
    return "\n\n".join(piece for start, end in bounds if (piece := text[start:end].strip()))


def clean(text: str) -> Cleaned:
    """Clean a text.

    >>> clean("The heart is&nbsp;<b>normal</b>.<br>Lungs   clear since XXXX.").text
    'The heart is normal. Lungs clear.'
    """
    counts: Counter[str] = Counter()
    if not text.isascii():
        if _MOJIBAKE.search(text):
            text, counts["encoding"] = _decoded(text)
        counts["encoding"] += text.count("\ufffd")
        text = text.translate(_PLAIN)
    if "<" in text or "&" in text:
        counts["html"] += len(_TAG.findall(text)) - len(re.findall(r"<X{3,}>", text)) + len(_ENTITY.findall(text))
        text = _BLOCK.sub("\n", _UNREAD.sub(" ", text))
        text = html.unescape(
            re.sub(r"<(X{3,})>", r"\1", _TAG.sub(lambda one: one[0] if re.fullmatch(r"<X{3,}>", one[0]) else " ", text))
        )
        text = text.translate(_PLAIN)
    found = len(_ANY_MARK.findall(text)) if ("XX" in text or "__" in text or "[**" in text or "xx" in text) else 0
    if found:
        counts["deidentification"] += found
        text = _MARKS.sub(" ", text)
    odd = len(_ODD_SPACE.findall(text)) if not found else 0
    if odd:
        counts["whitespace"] += odd
    if odd or found or counts or "\n" in text:
        text = _HEADED_LINE.sub("\n\n", text)
        text = _PARAGRAPH.sub("\n\n", text)
        text = re.sub(r" +", " ", _SPACES.sub(" ", text))
    if found or _DOUBLE_MARKS.search(text):
        text = _DOUBLE_MARKS.sub(lambda marks: "." if "." in marks[0] else marks[1], re.sub(r" (?=[.,;:)])", "", text))
    if "2." in text or "2)" in text:
        text = _itemized(text)
    return Cleaned(text=text.strip(), counts=+counts)
