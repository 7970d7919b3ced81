"""A normalized report as structured data: one statement after the other, in the order of the seven regions, and the impression.

Knows strings only. Whoever normalizes (rules, a language model) returns this; whoever checks or writes shards reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from echo_pl.reports.regions import REGION_NAMES
from echo_pl.reports.response import Language
from echo_pl.structs import ReportText

OTHER: Final = "other"
"""Where statements stand that belong to none of the seven regions: behind them."""
SECTIONS: Final[tuple[str, ...]] = (*REGION_NAMES, OTHER)


@dataclass(frozen=True, kw_only=True)
class RawReport:
    """A report as it was written, by its sections; sections that a report has not are empty."""

    findings: str = ""
    impression: str = ""
    indication: str = ""
    comparison: str = ""
    technique: str = ""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One sentence about one region."""

    section: str
    """One of :data:`SECTIONS`."""
    text: str
    """A whole sentence with its full stop."""
    imputed: bool = False
    """The original does not mention the region: this is the canonical negative."""
    source: str = ""
    """The words of the original it was made of; empty where imputed."""

    def __post_init__(self) -> None:
        if self.section not in SECTIONS:
            raise ValueError(f"section must be one of {SECTIONS}, got {self.section!r}")
        if not self.text.strip():
            raise ValueError(f"a statement about {self.section} is empty")


@dataclass(frozen=True, kw_only=True)
class NormalizedReport:
    """All that a report says, region by region."""

    statements: tuple[Statement, ...]
    impression: str
    language: Language = "en"
    dropped: Mapping[str, int] = field(default_factory=dict)
    """How many pieces of the original were left out, by reason: technique, comparison, deidentification, duplicate ..."""
    impression_imputed: bool = False
    """The original has no impression: this one was made of its findings."""

    @property
    def text(self) -> ReportText:
        """As text: the statements in the order of the regions, then what belongs to none."""
        space = "" if self.language == "zh" else " "
        ordered = (one.text for section in SECTIONS for one in self.statements if one.section == section)
        return ReportText(findings=space.join(ordered), impression=self.impression)

    @property
    def imputed(self) -> tuple[str, ...]:
        """Regions that the original does not mention."""
        return tuple(name for name in REGION_NAMES if any(one.imputed and one.section == name for one in self.statements))


class Normalizer(Protocol):
    """Makes a normalized report of a raw one."""

    @property
    def name(self) -> str:
        """What it is, with its version: part of a corpus's identity."""
        ...

    def normalize(self, report: RawReport) -> NormalizedReport:
        """Normalize one report.

        Raises:
            ValueError: it cannot be, with the reason, and none of the report's words (patient data).
        """
        ...
