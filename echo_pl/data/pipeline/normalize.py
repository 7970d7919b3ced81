"""Steps 2 and 4: normalized reports, and a seeded share of them translated into Chinese.

Each step turns a numbered file into a file of the same number, with the same entries in the same order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace

from echo_pl.data.pipeline.components import Check, Engine, Recipe, Redact, RefusedError, Translator, built
from echo_pl.data.pipeline.entries import Entry, EntryFiles, LeftOut, Record
from echo_pl.reports.report import NormalizedReport, RawReport
from echo_pl.reports.translation import chosen

Outcomes = Iterator[NormalizedReport | RefusedError]


@dataclass(frozen=True, kw_only=True)
class Normalizing:
    """Task of normalizing one file, in any process.

    A report that fails its completeness check is left to review.
    """

    source: EntryFiles
    target: EntryFiles
    engine: Recipe[Engine]
    check: Recipe[Check]
    redact: Redact | None

    def __call__(self, number: int) -> int:
        """Write one file; return its number of entries."""
        entries = [self._redacted(entry) for entry in self.source.read(number)]
        reports = (entry.study.report for entry in entries if isinstance(entry, Entry))
        outcomes = built(self.engine).normalize_many(reports)
        self.target.write(number, (self._normalized(entry, outcomes) for entry in entries))
        return len(entries)

    def _normalized(self, entry: Entry | LeftOut, outcomes: Outcomes) -> Entry | LeftOut:
        return entry if isinstance(entry, LeftOut) else self._checked(entry, _next(outcomes, self.engine.name))

    def _checked(self, entry: Entry, outcome: NormalizedReport | RefusedError) -> Entry | LeftOut:
        raw = entry.study.report
        if isinstance(outcome, RefusedError):
            return entry.left_out("review", "normalize", outcome.reason, outcome.detail, _both_reports(raw, None))
        try:
            problems = built(self.check).problems(raw, outcome)
        except ValueError as error:
            return entry.left_out("review", "check", "unchecked", str(error), _both_reports(raw, outcome))
        if problems:
            names = ", ".join(dict.fromkeys(one.name for one in problems))
            report = {**_both_reports(raw, outcome), "problems": [asdict(one) for one in problems]}
            return entry.left_out("review", "check", problems[0].name, names, report)
        return replace(entry, normalized=outcome)

    def _redacted(self, entry: Entry | LeftOut) -> Entry | LeftOut:
        if self.redact is None or isinstance(entry, LeftOut):
            return entry
        report, counts = self.redact(entry.study.report)
        return replace(entry, study=replace(entry.study, report=report), redacted=dict(counts))


@dataclass(frozen=True, kw_only=True)
class Translating:
    """Task of translating the chosen reports of one file.

    The choice is a function of seed and key. A report whose translation fails remains English, and is counted.
    """

    source: EntryFiles
    target: EntryFiles
    translator: Translator
    share: float
    seed: int
    left_out: Collection[int]
    """Places that need no translation, as another step leaves them out."""

    def __call__(self, number: int) -> int:
        """Write one file; return its number of entries."""
        entries = list(self.source.read(number))
        outcomes = self.translator.translate_many(report for report in map(self._report, entries) if report is not None)
        self.target.write(number, (self._translated(entry, outcomes) for entry in entries))
        return len(entries)

    def _translated(self, entry: Entry | LeftOut, outcomes: Outcomes) -> Entry | LeftOut:
        if isinstance(entry, LeftOut) or self._report(entry) is None:
            return entry
        outcome = _next(outcomes, "the translator")
        if isinstance(outcome, RefusedError):
            return replace(entry, note=f"not translated: {outcome.reason}")
        return replace(entry, normalized=outcome)

    def _report(self, entry: Entry | LeftOut) -> NormalizedReport | None:
        """Report to translate; None if it remains as it is."""
        if isinstance(entry, LeftOut) or entry.place in self.left_out:
            return None
        report = entry.normalized
        if report is None or report.language != "en" or not chosen(entry.study.key, seed=self.seed, share=self.share):
            return None
        return report


def _next(outcomes: Outcomes, name: str) -> NormalizedReport | RefusedError:
    if (outcome := next(outcomes, None)) is None:
        raise ValueError(f"{name} gave fewer reports than it got")
    return outcome


def _both_reports(raw: RawReport, normalized: NormalizedReport | None) -> Record:
    """Both versions of a report, for the review file."""
    return {"original": asdict(raw), "normalized": None if normalized is None else asdict(normalized)}
