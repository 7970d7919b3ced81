"""What a judge of reports is: the protocol between a corpus, which knows its own language, and those who score with it.

A judge reads text only; it never sees an image, a token or a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from echo_pl.structs import ReportText


@dataclass(frozen=True, kw_only=True)
class ParsedReport:
    """A report read back."""

    findings: frozenset[str]
    """Labels asserted positive by valid sentences of the findings section."""
    sentences: tuple[tuple[str, bool], ...]
    """Every sentence of both sections in order, with whether the corpus could have written it."""
    well_formed: bool
    """Whether the whole report could have been written."""


@runtime_checkable
class ReportJudge(Protocol):
    """Anything that can say what a report asserts and whether it could have been written."""

    @property
    def signature(self) -> str:
        """What would have to be known to judge alike."""
        ...

    def parse(self, report: ReportText) -> ParsedReport:
        """Read a report back. Never raises, whatever the text."""
        ...
