"""Words of a sentence, and the longest known phrase at each of them.

Knows how English forms plurals and nothing of medicine: what a phrase means is the business of whoever adds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

Entry = TypeVar("Entry")

_TOKEN = re.compile(r"[A-Za-z]+(?:'[a-z]+)?|\d+(?:\.\d+)?|[,;:()/]")
_IRREGULAR = {
    "hila": "hilum",
    "apices": "apex",
    "vertebrae": "vertebra",
    "pneumothoraces": "pneumothorax",
    "thoraces": "thorax",
    "atelectases": "atelectasis",
    "bullae": "bulla",
    "metastases": "metastasis",
    "granulomata": "granuloma",
    "pleurae": "pleura",
    "bronchi": "bronchus",
    "emphysemas": "emphysema",
    "scolioses": "scoliosis",
    "diaphragms": "diaphragm",
    "sulci": "sulcus",
    "prostheses": "prosthesis",
    "densities": "density",
    "osseus": "osseous",
    "axillae": "axilla",
    "scapulae": "scapula",
    "pneumothoracies": "pneumothorax",
    "sequelae": "sequela",
}


def word_set(text: str) -> frozenset[str]:
    """A set of words written in a row."""
    return frozenset(text.split())


class Token(NamedTuple):
    """A word, a number or a mark that divides, with its place in the sentence."""

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
    """Singular of a word in lower case.

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
    """Cut a sentence into tokens; a hyphen divides words and is not one itself."""
    return [Token(stem(found[0]), found.start(), found.end()) for found in _TOKEN.finditer(sentence)]


class Lexicon(Generic[Entry]):
    """Phrases and what they stand for; a phrase is found in singular and plural."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, ...], Entry] = {}
        self._sizes: dict[str, tuple[int, ...]] = {}
        """First word -> lengths of the phrases that begin with it, the longest first."""

    def add(self, phrases: Iterable[str], entry: Entry) -> None:
        """Add phrases that stand for one thing.

        Raises:
            ValueError: a phrase is in the lexicon already, and stands for something else.
        """
        for phrase in phrases:
            words = tuple(token.stem for token in tokenize(phrase))
            if self._entries.setdefault(words, entry) != entry:
                raise ValueError(f"{phrase!r} stands for {self._entries[words]!r} already, and now for {entry!r}")
            self._sizes[words[0]] = tuple(sorted({len(words), *self._sizes.get(words[0], ())}, reverse=True))

    def match(self, tokens: Sequence[Token]) -> list[Match[Entry]]:
        """Find phrases from left to right, the longest first; they do not overlap."""
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
