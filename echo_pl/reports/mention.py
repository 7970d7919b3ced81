"""What a sentence says of findings and of parts of the body, whatever its language."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, Protocol


class Status(Enum):
    """What is said of a finding."""

    POSITIVE = "positive"
    UNCERTAIN = "uncertain"
    NEGATIVE = "negative"
    ABSENT = "absent"
    """Nothing is said."""


class Mention(NamedTuple):
    """A finding or a device in a sentence."""

    concept: str
    status: Status
    sides: tuple[str, ...]
    """``left``, ``right``, both, or none where the sentence does not say."""
    zones: tuple[str, ...]
    """``upper``, ``base`` ..., sorted."""
    region: str
    start: int
    """Place of its first character in the sentence."""
    end: int
    implied: bool = False
    """Denied by a part that is said to be normal, not by name."""
    denied_as: str = ""
    """What a canonical negative denies, with the words that narrow it ("large"); empty where only its own words will do."""

    @property
    def claim(self) -> tuple[str, Status, tuple[str, ...], tuple[str, ...]]:
        """What it says, wherever it stands."""
        return (self.concept, self.status, self.sides, self.zones)


class NormalPart(NamedTuple):
    """A part that is said to be normal."""

    part: str
    region: str
    sides: tuple[str, ...]
    start: int
    end: int
    generic: bool = False
    """An abnormality of it is denied, and nothing else said."""
    qualifiers: tuple[str, ...] = ()
    """Words that narrow the denial ("acute")."""


class Analysis(NamedTuple):
    """A sentence, read."""

    mentions: tuple[Mention, ...]
    normals: tuple[NormalPart, ...]
    parts: tuple[str, ...]
    """Every part that is named, in order."""
    globally_normal: bool
    """Denies abnormality without naming a part in particular ("no acute cardiopulmonary abnormality")."""
    joints: tuple[tuple[int, int], ...]
    """Where it might be cut: first and last character of commas, conjunctions, prepositions and denials."""
    changed: tuple[tuple[str, int], ...] = ()
    """Regions of parts that are abnormal in a way that has no name in the table, with the place of the word that says so."""
    unknown: tuple[tuple[int, int], ...] = ()
    """Words that a canonical sentence would lose."""

    @property
    def positive(self) -> bool:
        """Whether a finding is there, or in doubt."""
        return any(one.status in (Status.POSITIVE, Status.UNCERTAIN) for one in self.mentions)


class Reader(Protocol):
    """Reads sentences of one language."""

    def split(self, text: str) -> list[str]:
        """Cut a text into sentences, each as it stands."""
        ...

    def read(self, sentence: str) -> Analysis:
        """Say what a sentence says."""
        ...
