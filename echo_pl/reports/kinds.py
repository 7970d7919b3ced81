"""Kind of a sentence: statement on the patient, interpretation, remark on the examination.

English and Chinese.

Patterns and words are in ``tables/sentence_kinds.yaml``.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from echo_pl.reports.mention import Analysis
from echo_pl.reports.tables import read_table, words_of


class Kind(Enum):
    """Kind of a sentence."""

    STATEMENT = "statement"
    INTERPRETATION = "interpretation"
    """Belongs to the impression."""
    TECHNIQUE = "technique"
    COMPARISON = "comparison"
    COMMUNICATION = "communication"
    REMNANT = "deidentification"
    """Rest of a sentence whose subject was a de-identification mark."""


_TABLE: Final = read_table("sentence_kinds")


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile("|".join(_TABLE[name]), re.IGNORECASE)


_TECHNIQUE, _COMPARISON, _COMMUNICATION = _pattern("technique"), _pattern("comparison"), _pattern("communication")
_INTERPRETATION, _REMNANT, _UNFINISHED, _VIEWS = (_pattern(name) for name in ("interpretation", "remnant", "unfinished", "views"))
REFERRING: Final = _pattern("referring")
"""Begin of a sentence with the subject of the sentence before it."""
_ABOUT_THE_EXAMINATION: Final = words_of(_TABLE["about_the_examination"])
_REMNANT_WORDS: Final = _ABOUT_THE_EXAMINATION | words_of(_TABLE["normality"])
_WORD = re.compile(r"[A-Za-z]{2,}|[\u4e00-\u9fff]")
_LATIN = re.compile(r"[a-z]{2,}")
_WHOLE_CHEST = frozenset({"chest", "thorax"})


def about_the_examination(sentence: str) -> bool:
    """Return True if all words of a sentence are about examinations and reports."""
    return _ABOUT_THE_EXAMINATION.issuperset(_LATIN.findall(sentence.lower()))


def _is_remnant(sentence: str) -> bool:
    return _REMNANT_WORDS.issuperset(_LATIN.findall(sentence.lower()))


def kind_of(sentence: str, found: Analysis) -> Kind:
    """Return the kind of a sentence; remarks on the examination mention no finding."""
    if found.globally_normal and not found.mentions:
        return Kind.INTERPRETATION
    if found.mentions or found.normals:
        return Kind.INTERPRETATION if _INTERPRETATION.search(sentence) else Kind.STATEMENT
    silent = set(found.parts) <= _WHOLE_CHEST
    words = len(_WORD.findall(sentence))
    if found.parts and words < 5 and _UNFINISHED.search(sentence):
        return Kind.REMNANT
    if words < 2 and (found.parts or _is_remnant(sentence)):
        return Kind.REMNANT
    if silent and _COMMUNICATION.search(sentence):
        return Kind.COMMUNICATION
    if REFERRING.search(sentence) and not _VIEWS.search(sentence):
        return Kind.STATEMENT
    if _INTERPRETATION.search(sentence):
        return Kind.INTERPRETATION
    if silent and about_the_examination(sentence):
        if _TECHNIQUE.search(sentence):
            return Kind.TECHNIQUE
        if _COMPARISON.search(sentence):
            return Kind.COMPARISON
    if silent and _REMNANT.search(sentence) and _is_remnant(sentence):
        return Kind.REMNANT
    return Kind.STATEMENT
