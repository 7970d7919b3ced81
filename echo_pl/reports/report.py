"""Records of a report: raw, normalized, and parsed back by a judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from echo_pl.reports.regions import REGION_NAMES, SECTIONS
from echo_pl.reports.response import Language
from echo_pl.structs import ReportText


@dataclass(frozen=True, kw_only=True)
class RawReport:
    """A report by its original sections; a missing section is empty."""

    findings: str = ""
    impression: str = ""
    indication: str = ""
    comparison: str = ""
    technique: str = ""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One sentence about one region."""

    section: str
    """One of :data:`~echo_pl.reports.regions.SECTIONS`."""
    text: str
    """A whole sentence with its full stop."""
    imputed: bool = False
    """The original does not mention the region: this is the canonical negative."""
    source: str = ""
    """Original words; empty if imputed."""

    def __post_init__(self) -> None:
        if self.section not in SECTIONS:
            raise ValueError(f"section must be one of {SECTIONS}, got {self.section!r}")
        if not self.text.strip():
            raise ValueError(f"a statement about {self.section} is empty")


@dataclass(frozen=True, kw_only=True)
class NormalizedReport:
    """A report, region by region."""

    statements: tuple[Statement, ...]
    impression: str
    language: Language = "en"
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Omitted pieces of the original by reason: technique, comparison, duplicate ..."""
    impression_imputed: bool = False
    """The original has no impression: this one was made from its findings."""

    @property
    def text(self) -> ReportText:
        """The statements in the order of the sections, and the impression."""
        space = "" if self.language == "zh" else " "
        ordered = (one.text for section in SECTIONS for one in self.statements if one.section == section)
        return ReportText(findings=space.join(ordered), impression=self.impression)

    @property
    def imputed(self) -> tuple[str, ...]:
        """Regions that the original does not mention."""
        return tuple(name for name in REGION_NAMES if any(one.imputed and one.section == name for one in self.statements))


@dataclass(frozen=True, kw_only=True)
class ParsedReport:
    """A report parsed by the judge of a corpus."""

    findings: frozenset[str]
    """Labels of the findings that valid sentences state as present."""
    sentences: tuple[tuple[str, bool], ...]
    """Every sentence of both sections in order, and True if the corpus could contain it."""
    well_formed: bool
    """The corpus could contain the whole report."""


@runtime_checkable
class ReportJudge(Protocol):
    """Parser of a corpus's reports: their findings and their validity."""

    @property
    def signature(self) -> str:
        """Name and version for the signatures of scores."""
        ...

    def parse(self, report: ReportText) -> ParsedReport:
        """Parse a report. Never raises, whatever the text."""
        ...
