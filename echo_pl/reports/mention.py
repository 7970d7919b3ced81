"""Analysis of a sentence, whatever its language: findings, devices and parts of the body with their status."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple


class Status(Enum):
    """Status of a finding."""

    POSITIVE = "positive"
    UNCERTAIN = "uncertain"
    NEGATIVE = "negative"
    ABSENT = "absent"
    """Not mentioned."""


class Mention(NamedTuple):
    """A finding or a device in a sentence."""

    concept: str
    status: Status
    sides: tuple[str, ...]
    """``left``, ``right`` or both; empty if the sentence does not state it."""
    zones: tuple[str, ...]
    """``upper``, ``base`` ..., sorted."""
    region: str
    start: int
    """Its first character in the sentence."""
    end: int
    implied: bool = False
    """Negated by a part that is normal, not by its name."""
    denied_as: str = ""
    """Noun for a canonical negative, with its qualifiers ("large"); empty if only the original words will do."""

    @property
    def claim(self) -> tuple[str, Status, tuple[str, ...], tuple[str, ...]]:
        """Concept, status, sides and zones."""
        return (self.concept, self.status, self.sides, self.zones)


class NormalPart(NamedTuple):
    """A part that is normal."""

    part: str
    region: str
    sides: tuple[str, ...]
    start: int
    end: int
    generic: bool = False
    """The sentence only denies an abnormality of the part."""
    qualifiers: tuple[str, ...] = ()
    """Words that narrow the denial ("acute")."""


class Analysis(NamedTuple):
    """Content of a sentence."""

    mentions: tuple[Mention, ...]
    normals: tuple[NormalPart, ...]
    parts: tuple[str, ...]
    """All parts, in order."""
    globally_normal: bool
    """Denies an abnormality of no part in particular ("no acute cardiopulmonary abnormality")."""
    joints: tuple[tuple[int, int], ...]
    """First and last character of commas, conjunctions, prepositions and negations: possible ends of a clause."""
    changed: tuple[tuple[str, int], ...] = ()
    """Regions of parts with an abnormality that has no name in the tables, and the position of its word."""
    unknown: tuple[tuple[int, int], ...] = ()
    """Words that a canonical sentence would lose."""


class Reader(NamedTuple):
    """Functions that analyse one language."""

    split: Callable[[str], list[str]]
    """Text -> sentences, without their full stops."""
    read: Callable[[str], Analysis]
    """Sentence -> analysis; analyses are cached."""
