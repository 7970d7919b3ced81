"""Sentence splitting: every room that needs sentences takes them from here.

ROUGE splits as its reference package does (:mod:`echo_pl.metrics.rouge`), and
:mod:`echo_pl.reports.plain_comparison` shares nothing with the labeller, its splitter included.
"""

from __future__ import annotations

import re

_REPORT_END = re.compile(r"[.?!]+(?=\s|$|[A-Z])|\n\s*\n|;(?=\s)")
_ABBREVIATION = re.compile(r"\b(?:dr|mr|mrs|ms|vs|approx|no|st|fig|e\.g|i\.e|a\.m|p\.m)\.$", re.IGNORECASE)
_LOSSLESS_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(])|(?<=[。！？；])|\n+")
_NUMBERING_ZH = re.compile(r"^\s*\d{1,2}[.、．)）]\s*")


def split_sentences(text: str) -> list[str]:
    """Split English report text, but not in numbers and abbreviations.

    >>> split_sentences("A 2.5 cm mass vs. scarring. No effusion; clear lungs.")
    ['A 2.5 cm mass vs. scarring', 'No effusion', 'clear lungs']
    """
    sentences, start = [], 0
    for mark in _REPORT_END.finditer(text):
        piece = text[start : mark.end()]
        if mark[0] == "." and (_ABBREVIATION.search(piece) or re.match(r"\s*\d{1,2}\.$", piece)):
            continue
        sentences.append(piece)
        start = mark.end()
    sentences.append(text[start:])
    return [piece for one in sentences if (piece := one.strip(" \t\n.;")) and re.search(r"\w", piece)]


def split_chinese(text: str) -> list[str]:
    """Split Chinese report text, without the numbers of list items."""
    pieces = (_NUMBERING_ZH.sub("", one).strip() for one in split_at_marks(text, "。；;!！\n"))
    return [one for one in pieces if one]


def split_at_marks(text: str, marks: str = ".!?\n。！？", *, keep: bool = False) -> list[str]:
    """Split at every mark, whatever surrounds it; pieces are stripped, empty ones left out.

    Args:
        text: English or Chinese.
        marks: characters that end a sentence.
        keep: leave the mark at its sentence.

    >>> split_at_marks("no nodule. normal heart", ".", keep=True)
    ['no nodule.', 'normal heart']
    """
    found = re.findall(rf"[^{marks}]*[{marks}]|[^{marks}]+$", text)
    pieces = (one.strip() if keep else one.rstrip(marks).strip() for one in found)
    return [one for one in pieces if one]


def split_lossless(text: str) -> list[str]:
    """Split so that the pieces hold all characters of the text but white space."""
    return [piece for part in _LOSSLESS_END.split(text) if (piece := " ".join(part.split()))]
