"""Analysis of a sentence in any language: findings, devices and parts with their status."""

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
    """Noun of a canonical negative, with qualifiers; empty if the original words must stay."""

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
    """First and last character of commas, conjunctions and negations, which may end a clause."""
    changed: tuple[tuple[str, int], ...] = ()
    """Regions of parts with an unnamed abnormality, and the position of its word."""
    unknown: tuple[tuple[int, int], ...] = ()
    """Words that a canonical sentence would lose."""


class Reader(NamedTuple):
    """Functions that analyse one language."""

    split: Callable[[str], list[str]]
    """Text -> sentences, without their full stops."""
    read: Callable[[str], Analysis]
    """Sentence -> analysis; analyses are cached."""
