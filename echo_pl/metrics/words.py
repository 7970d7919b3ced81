"""How a text becomes words: one splitter per language, with a name for signatures.

Chinese has no spaces: jieba cuts it (METHOD.md 5). jieba is an optional extra and is imported when it is first asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from echo_pl.metrics.text import split_words


@dataclass(frozen=True, kw_only=True)
class Words:
    """A splitter and what it is called."""

    name: str
    """With the version where a library does it."""
    split: Callable[[str], list[str]]
    """A text as words, lower-cased, without punctuation: what most scores read."""
    spaced: Callable[[str], str]
    """The text lower-cased with a space between words, punctuation kept: what a score reads that splits at spaces itself."""


def words_of(language: str) -> Words:
    """The splitter of a language.

    Raises:
        ValueError: no such language, or jieba is missing.
    """
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
    try:
        import jieba
    except ImportError as error:
        raise ValueError("scores of Chinese reports need jieba, which is not installed: pip install 'echo-pl[zh]'") from error
    jieba.setLogLevel(logging.WARNING)  # it announces its dictionary on stderr
    return jieba


def _lower(text: str) -> str:
    return text.lower()
