"""What a report says of every finding and device of the table: positive, uncertain, negative or absent, and on which side.

A pure function of the text, without weights. Languages have readers of their own; this adds up what their sentences say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from echo_pl.reports.anatomy import ANATOMY
from echo_pl.reports.chinese import ChineseReader
from echo_pl.reports.cleaning import is_chinese
from echo_pl.reports.concepts import CONCEPT_NAMES
from echo_pl.reports.english import EnglishReader
from echo_pl.reports.mention import Mention, Reader, Status
from echo_pl.reports.regions import REGION_NAMES

_RANK = {Status.POSITIVE: 3, Status.UNCERTAIN: 2, Status.NEGATIVE: 1, Status.ABSENT: 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """What a report says of one finding."""

    status: Status = Status.ABSENT
    """The strongest that is said anywhere: positive, then uncertain, then negative."""
    sides: frozenset[str] = frozenset()
    """``left`` and ``right`` as said of that status; both where it is bilateral, none where the report does not say."""
    zones: frozenset[str] = frozenset()
    """``upper``, ``middle``, ``lower``, ``lingula``, ``base``, ``apex`` ..., as said of that status."""

    @property
    def present(self) -> bool:
        """Whether it is there, certain or not."""
        return self.status in (Status.POSITIVE, Status.UNCERTAIN)


_ABSENT = Label()


class Labeller:
    """Labels reports in English and Chinese.

    >>> found = Labeller().label("Small left pleural effusion. No pneumothorax. Possible pneumonia.")
    >>> found["effusion"].status.value, sorted(found["effusion"].sides)
    ('positive', ['left'])
    >>> [found[name].status.value for name in ("pneumothorax", "pneumonia", "fracture")]
    ['negative', 'uncertain', 'absent']
    """

    version = "labeller-1"
    """To be raised with every change of what it reads: part of the signature of every score that it gives."""
    names = CONCEPT_NAMES
    """Every finding and device that is looked for."""

    def __init__(self) -> None:
        self._english, self._chinese = EnglishReader(), ChineseReader()

    def reader(self, text: str) -> Reader:
        """The reader of the text's language."""
        return self._chinese if is_chinese(text) else self._english

    def mentions(self, text: str) -> list[Mention]:
        """Every mention of a finding or device, sentence by sentence."""
        reader = self.reader(text)
        return [one for sentence in reader.split(text) for one in reader.read(sentence).mentions]

    def label(self, text: str) -> Mapping[str, Label]:
        """Label a text; every name of :attr:`names` has a label."""
        return summarize(self.mentions(text))

    def understands(self, text: str) -> bool:
        """Whether it reads anything out of a text: a finding or a device, its absence, or that a part or everything is normal.

        >>> Labeller().understands("No acute disease."), Labeller().understands("To be or not to be.")
        (True, False)
        """
        reader = self.reader(text)
        sentences = (reader.read(sentence) for sentence in reader.split(text))
        return any(one.mentions or one.normals or one.changed or one.globally_normal for one in sentences)

    def regions(self, text: str) -> frozenset[str]:
        """Those of the seven regions that a text says something of: a finding or a device, its absence, or that a part is normal.

        >>> sorted(Labeller().regions("Small left effusion. Heart size is normal. No acute disease."))
        ['diaphragm', 'heart']
        """
        reader = self.reader(text)
        spoken: set[str] = set()
        for sentence in reader.split(text):
            found = reader.read(sentence)
            spoken.update(one.region for one in found.mentions)
            spoken.update(one.region for one in found.normals)
            spoken.update(region for region, _ in found.changed)
            if not (found.mentions or found.normals or found.changed):
                spoken.update(_regions_of(found.parts))
        return frozenset(spoken.intersection(REGION_NAMES))


def _regions_of(parts: Iterable[str]) -> Iterator[str]:
    for part in parts:
        yield from (ANATOMY[one].region for one in (ANATOMY[part].parts or (part,)))


def summarize(mentions: Iterable[Mention]) -> dict[str, Label]:
    """One label for every finding of the table."""
    labels = dict.fromkeys(CONCEPT_NAMES, _ABSENT)
    for one in mentions:
        known = labels[one.concept]
        if _RANK[one.status] > _RANK[known.status]:
            labels[one.concept] = Label(status=one.status, sides=frozenset(one.sides), zones=frozenset(one.zones))
        elif one.status is known.status and (one.sides or one.zones):
            labels[one.concept] = Label(status=one.status, sides=known.sides.union(one.sides), zones=known.zones.union(one.zones))
    return labels
