"""Splitting a text into words: one splitter per language, with a name for signatures.

Chinese has no spaces, so jieba cuts it. jieba is an optional extra and is imported at its first use.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+")
_RUN = re.compile(r"[\u4e00-\u9fff]+|[^\W_\u4e00-\u9fff]+")


def split_words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits; every Chinese ideograph is a word of its own.

    >>> split_words("The heart-size is normal.")
    ['the', 'heart', 'size', 'is', 'normal']
    """
    return _WORD.findall(text.lower())


def cut_words(text: str) -> list[str]:
    """:func:`split_words` for text of any language: jieba cuts runs of ideographs, if it is installed (:func:`cut_words_variant`).

    >>> cut_words("The heart-size is normal.")
    ['the', 'heart', 'size', 'is', 'normal']
    """
    words: list[str] = []
    for run in _RUN.findall(text.lower()):
        if not _WORD.fullmatch(run) and (cut := _jieba_or_none()) is not None:
            words += cut.lcut(run)
        elif "\u4e00" <= run[0] <= "\u9fff":
            words += run
        else:
            words.append(run)
    return words


def cut_words_variant() -> str:
    """Variant of :func:`cut_words`, for signatures."""
    cut = _jieba_or_none()
    return f"alphanumeric runs, ideographs {'single (no jieba)' if cut is None else f'by jieba {cut.__version__}'}"


@dataclass(frozen=True, kw_only=True)
class Words:
    """A splitter and its name."""

    name: str
    """With the version of a library."""
    split: Callable[[str], list[str]]
    """From a text to its words, lower-cased, without punctuation."""
    spaced: Callable[[str], str]
    """From a text to the lower-cased text with a space between words, punctuation kept: for scores that split at spaces."""


def words_of(language: str) -> Words:
    """Splitter of a language; raises ValueError for an unknown language, or if jieba is missing."""
    if language == "en":
        return Words(name="lower case, alphanumeric runs", split=split_words, spaced=_lower)
    if language == "zh":
        return _chinese()
    raise ValueError(f"language must be 'en' or 'zh', got {language!r}")


def _chinese() -> Words:
    cut = _jieba()

    def pieces(text: str) -> list[str]:
        return [piece for piece in cut.lcut(text.lower()) if piece.strip()]

    def split(text: str) -> list[str]:
        return [piece for piece in pieces(text) if split_words(piece)]

    return Words(
        name=f"lower case, jieba {cut.__version__}, no punctuation", split=split, spaced=lambda text: " ".join(pieces(text))
    )


def _jieba() -> Any:
    cut = _jieba_or_none()
    if cut is None:
        raise ValueError("scores of Chinese reports need jieba, which is not installed: pip install 'echo-pl[zh]'")
    return cut


def _jieba_or_none() -> Any:
    try:
        import jieba
    except ImportError:
        return None
    jieba.setLogLevel(logging.WARNING)  # else it logs to stderr while it loads its dictionary
    return jieba


def _lower(text: str) -> str:
    return text.lower()
