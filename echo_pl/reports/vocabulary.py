"""Findings, devices, parts of the body and their changes (``tables/{findings,anatomy}.yaml``).

English and Chinese terms of a row name the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from echo_pl.reports.regions import SECTIONS
from echo_pl.reports.tables import build_rows, check_names, read_table


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A finding or a device."""

    name: str
    region: str
    noun: str
    """Its name after "there is no" in a canonical negative."""
    noun_zh: str
    terms: tuple[str, ...] = ()
    """Phrases that name it; empty if only a part and a change of it do."""
    terms_zh: tuple[str, ...] = ()
    kind: str = "finding"
    """``finding`` or ``device``."""
    moves: bool = False
    """Stated in the region of the part it is found in; ``region`` is the default."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the body."""

    name: str
    region: str
    """``other``: in no region, or in all (chest)."""
    terms: tuple[str, ...]
    noun: str = ""
    normal: str = ""
    """Canonical sentence that it is normal; empty if there is none."""
    denies: tuple[str, ...] = ()
    """Findings that are absent if the part is normal."""
    parts: tuple[str, ...] = ()
    """Parts that its words name together (cardiomediastinal)."""
    noun_zh: str = ""
    normal_zh: str = ""
    terms_zh: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of a part ("enlarged")."""

    name: str
    terms: tuple[str, ...]
    terms_zh: tuple[str, ...] = ()


_ANATOMY: Final = read_table("anatomy")
CONCEPTS: Final = build_rows(Concept, "findings", read_table("findings"))
DEVICES: Final = frozenset(one.name for one in CONCEPTS.values() if one.kind == "device")
PARTS: Final = build_rows(Part, "anatomy", _ANATOMY["parts"])
CHANGES: Final = build_rows(Change, "anatomy", _ANATOMY["changes"])
PAIRS: Final[dict[tuple[str, str], str]] = {
    (part, change): finding for part, row in _ANATOMY["pairs"].items() for change, finding in row.items()
}
"""(part, change) -> finding."""
BECOMES: Final[dict[tuple[str, str], str]] = {
    (finding, part): other for finding, row in _ANATOMY["becomes"].items() for part, other in row.items()
}
"""(finding, part it is found in) -> the finding that it is there."""


def _validate() -> None:
    """Raise ValueError if a name of one table is missing in another."""
    for concept in CONCEPTS.values():
        check_names(f"findings.yaml, {concept.name}", [concept.region], SECTIONS)
        check_names(f"findings.yaml, {concept.name}", [concept.kind], ("finding", "device"))
    for part in PARTS.values():
        where = f"anatomy.yaml, {part.name}"
        check_names(where, [part.region], SECTIONS)
        check_names(where, part.denies, CONCEPTS)
        check_names(where, part.parts, PARTS)
    check_names("anatomy.yaml, pairs and becomes", [*(part for part, _ in PAIRS), *(part for _, part in BECOMES)], PARTS)
    check_names("anatomy.yaml, pairs", [change for _, change in PAIRS], CHANGES)
    names = [*PAIRS.values(), *BECOMES.values(), *(finding for finding, _ in BECOMES)]
    check_names("anatomy.yaml, pairs and becomes", names, CONCEPTS)


_validate()


def single_parts(names: tuple[str, ...] | list[str]) -> list[str]:
    """Return the parts of these names, with the single ones in place of a name for several."""
    return [one for name in names for one in (PARTS[name].parts or (name,))]
