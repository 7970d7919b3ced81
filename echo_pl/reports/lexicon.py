"""Tokens of an English sentence, and the longest known phrase at each of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, Generic, NamedTuple, TypeVar

from echo_pl.reports.tables import read_table

Entry = TypeVar("Entry")

_TOKEN = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|\d+(?:\.\d+)?|[,;:()/]")
_IRREGULAR: Final[dict[str, str]] = read_table("words")["irregular_plurals"]


class Token(NamedTuple):
    """A word, a number or a dividing mark, with its characters in the sentence."""

    stem: str
    start: int
    end: int


class Match(NamedTuple, Generic[Entry]):
    """A known phrase: tokens ``first`` to ``last`` (exclusive) of a sentence."""

    first: int
    last: int
    entry: Entry


@lru_cache(maxsize=20_000)
def stem(word: str) -> str:
    """Return the singular of a word, in lower case.

    >>> stem("Effusions"), stem("opacities"), stem("mass"), stem("pneumothoraces")
    ('effusion', 'opacity', 'mass', 'pneumothorax')
    """
    word = word.lower()
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


def tokenize(sentence: str) -> list[Token]:
    """Split a sentence into tokens; a hyphen separates words and is no token."""
    return [Token(stem(found[0]), found.start(), found.end()) for found in _TOKEN.finditer(sentence)]


class Lexicon(Generic[Entry]):
    """Phrases and their meanings; a phrase is found in singular and plural."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, ...], Entry] = {}
        self._sizes: dict[str, tuple[int, ...]] = {}
        """First word -> lengths of the phrases that begin with it, longest first."""

    def add(self, phrases: Iterable[str], entry: Entry) -> None:
        """Add phrases with one meaning.

        Raises:
            ValueError: a phrase is in the lexicon already, with another meaning.
        """
        for phrase in phrases:
            words = tuple(token.stem for token in tokenize(phrase))
            if self._entries.setdefault(words, entry) != entry:
                raise ValueError(f"{phrase!r} means {self._entries[words]!r} already and cannot mean {entry!r}")
            self._sizes[words[0]] = tuple(sorted({len(words), *self._sizes.get(words[0], ())}, reverse=True))

    def match(self, tokens: Sequence[Token]) -> list[Match[Entry]]:
        """Find phrases from left to right, the longest at each token; they do not overlap."""
        stems = tuple(token.stem for token in tokens)
        found: list[Match[Entry]] = []
        place, count = 0, len(stems)
        while place < count:
            step = 1
            for size in self._sizes.get(stems[place], ()):
                entry = self._entries.get(stems[place : place + size])
                if entry is not None and place + size <= count:
                    found.append(Match(place, place + size, entry))
                    step = size
                    break
            place += step
        return found
