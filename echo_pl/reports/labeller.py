"""Labels of a report, without weights: status, sides and zones of findings and devices.

Each language has a reader; a label sums up the mentions in all sentences. :func:`tagged` makes
labels of MeSH tags.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from echo_pl.reports.chinese import CHINESE
from echo_pl.reports.cleaning import is_chinese
from echo_pl.reports.english import ENGLISH
from echo_pl.reports.mention import Mention, Reader, Status
from echo_pl.reports.regions import REGION_NAMES
from echo_pl.reports.tables import check_names, read_table
from echo_pl.reports.vocabulary import CONCEPTS, PARTS, single_parts

_RANK = {Status.POSITIVE: 3, Status.UNCERTAIN: 2, Status.NEGATIVE: 1, Status.ABSENT: 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """Label of one finding."""

    status: Status = Status.ABSENT
    """The strongest of all mentions: positive, then uncertain, then negative."""
    sides: frozenset[str] = frozenset()
    """``left`` and ``right`` of the mentions with that status; empty if none states it."""
    zones: frozenset[str] = frozenset()
    """``upper``, ``middle``, ``lower``, ``lingula``, ``base``, ``apex`` ... of these mentions."""

    @property
    def present(self) -> bool:
        """True if the finding is present, certain or not."""
        return self.status in (Status.POSITIVE, Status.UNCERTAIN)


_ABSENT = Label()


class Labeller:
    """Labeller of reports in English and Chinese.

    >>> found = Labeller().label("Small left pleural effusion. No pneumothorax. Possible pneumonia.")
    >>> found["effusion"].status.value, sorted(found["effusion"].sides)
    ('positive', ['left'])
    >>> [found[name].status.value for name in ("pneumothorax", "pneumonia", "fracture")]
    ['negative', 'uncertain', 'absent']
    """

    version = "labeller-1"
    """Increases with every change of a label; part of the signatures of scores."""
    names = tuple(CONCEPTS)
    """All findings and devices."""

    def reader(self, text: str) -> Reader:
        """Return the reader of the text's language."""
        return CHINESE if is_chinese(text) else ENGLISH

    def mentions(self, text: str) -> list[Mention]:
        """Return every mention of a finding or device, sentence by sentence."""
        reader = self.reader(text)
        return [one for sentence in reader.split(text) for one in reader.read(sentence).mentions]

    def label(self, text: str) -> Mapping[str, Label]:
        """Return a label for each of :attr:`names`."""
        return summarize(self.mentions(text))

    def understands(self, text: str) -> bool:
        """Return True if the text mentions a finding, a device or normality.

        >>> Labeller().understands("No acute disease."), Labeller().understands("To be or not to be.")
        (True, False)
        """
        reader = self.reader(text)
        sentences = (reader.read(sentence) for sentence in reader.split(text))
        return any(one.mentions or one.normals or one.changed or one.globally_normal for one in sentences)

    def regions(self, text: str) -> frozenset[str]:
        """Return the regions that a text describes by mentions or normal parts.

        >>> sorted(Labeller().regions("Small left effusion. Heart size is normal. No acute disease."))
        ['diaphragm', 'heart']
        """
        reader = self.reader(text)
        described: set[str] = set()
        for sentence in reader.split(text):
            found = reader.read(sentence)
            described.update(one.region for one in found.mentions)
            described.update(one.region for one in found.normals)
            described.update(region for region, _ in found.changed)
            if not (found.mentions or found.normals or found.changed):
                described.update(PARTS[part].region for part in single_parts(found.parts))
        return frozenset(described.intersection(REGION_NAMES))


def summarize(mentions: Iterable[Mention]) -> dict[str, Label]:
    """Return one label for every finding and device."""
    labels = dict.fromkeys(CONCEPTS, _ABSENT)
    for one in mentions:
        before = labels[one.concept]
        if _RANK[one.status] > _RANK[before.status]:
            labels[one.concept] = Label(status=one.status, sides=frozenset(one.sides), zones=frozenset(one.zones))
        elif one.status is before.status and (one.sides or one.zones):
            labels[one.concept] = Label(status=one.status, sides=before.sides.union(one.sides), zones=before.zones.union(one.zones))
    return labels


_TAGS: Final[Mapping[str, list[str]]] = read_table("mesh")
check_names("mesh.yaml", _TAGS, CONCEPTS)
TAGGED_NAMES: Final = tuple(_TAGS)
"""Findings and devices that the MeSH tags of the Indiana University reports can state."""
_BY_TAG: Final[dict[str, tuple[str, ...]]] = {}
for _name, _tags in _TAGS.items():
    for _tag in _tags:
        _BY_TAG[_tag] = (*_BY_TAG.get(_tag, ()), _name)


def _names(tag: str) -> tuple[str, ...]:
    """Return the names for the longest part of a tag that is in the table."""
    parts = tag.lower().split("/")
    found = [parts[0], *(f"{parts[0]}/{part}" for part in parts[1:])]
    if len(parts) > 2:
        found += [f"{parts[0]}/{parts[1]}/{part}" for part in parts[2:]]
    hits = [(len(one.split("/")), _BY_TAG[one]) for one in found if one in _BY_TAG]
    longest = max((size for size, _ in hits), default=0)
    return tuple(dict.fromkeys(name for size, names in hits if size == longest for name in names))


def tagged(tags: Iterable[str]) -> frozenset[str] | None:
    """Return the names for the MeSH tags of one study; None if the study is not indexed.

    >>> sorted(tagged(["Pleural Effusion/left/small", "Lung/hypoinflation/mild"]))
    ['effusion', 'low_lung_volume']
    """
    tags = list(tags)
    if any(tag.lower() == "no indexing" for tag in tags):
        return None
    return frozenset(name for tag in tags for name in _names(tag))
