"""Words of a sentence, and the longest known phrase at each of them.

Knows how English forms plurals and nothing of medicine: what a phrase means is the business of whoever adds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class _Phrase(Generic[Entry]):
    rest: tuple[str, ...]
    entry: Entry


class Lexicon(Generic[Entry]):
    """Phrases and what they stand for; a phrase is found in singular and plural."""

    def __init__(self) -> None:
        self._by_first: dict[str, list[_Phrase[Entry]]] = {}

    def add(self, phrases: Iterable[str], entry: Entry) -> None:
        """Add phrases that stand for one thing.

        Raises:
            ValueError: a phrase is in the lexicon already, and stands for something else.
        """
        for phrase in phrases:
            first, *rest = [token.stem for token in tokenize(phrase)]
            known = self._by_first.setdefault(first, [])
            twin = next((one for one in known if one.rest == tuple(rest)), None)
            if twin is not None:
                if twin.entry != entry:
                    raise ValueError(f"{phrase!r} stands for {twin.entry!r} already, and now for {entry!r}")
                continue
            known.append(_Phrase(rest=tuple(rest), entry=entry))
            known.sort(key=lambda one: -len(one.rest))

    def match(self, tokens: Sequence[Token]) -> list[Match[Entry]]:
        """Find phrases from left to right, the longest first; they do not overlap."""
        found: list[Match[Entry]] = []
        place, count = 0, len(tokens)
        while place < count:
            step = 1
            for phrase in self._by_first.get(tokens[place].stem, ()):
                size = len(phrase.rest)
                if all(
                    place + 1 + i < count and tokens[place + 1 + i].stem == word for i, word in enumerate(phrase.rest)
                ):
                    found.append(Match(place, place + 1 + size, phrase.entry))
                    step = 1 + size
                    break
            place += step
        return found
