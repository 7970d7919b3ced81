"""Step 2: reports are normalized, file by file; what does not pass the completeness check goes to review.

A file of the listing becomes a file of the same number with the same entries in the same order. Knows engines by their protocol
only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from echo_pl.data.pipeline.entries import Entry, LeftOut, encode, read_entries, report_record
from echo_pl.data.pipeline.files import write_lines
from echo_pl.data.pipeline.listing import chunk_path
from echo_pl.data.pipeline.parts import Check, Engine, Recipe, Redact, RefusedError, built
from echo_pl.reports.report import NormalizedReport


@dataclass(frozen=True, kw_only=True)
class Normalizing:
    """The task of normalizing one file; called in any process.

    Args of the call: the file's number. Returns how many entries it has.
    """

    base: Path
    """Of relative paths."""
    listed: Path
    """Folder to read from."""
    folder: Path
    """Folder to write to."""
    engine: Recipe[Engine]
    check: Recipe[Check]
    redact: Redact | None

    def __call__(self, number: int) -> int:
        """Normalize one file, unless it is there.

        Raises:
            ValueError: the engine gave another number of reports than it got.
        """
        entries = [self._redacted(entry) for entry in read_entries(chunk_path(self.listed, number), self.base)]
        reports = (entry.study.report for entry in entries if isinstance(entry, Entry))
        outcomes = built(self.engine).normalize_many(reports)
        write_lines(chunk_path(self.folder, number), (encode(one, self.base) for one in self._settled(entries, outcomes)))
        return len(entries)

    def _settled(
        self, entries: list[Entry | LeftOut], outcomes: Iterator[NormalizedReport | RefusedError]
    ) -> Iterator[Entry | LeftOut]:
        for entry in entries:
            if isinstance(entry, LeftOut):
                yield entry
                continue
            outcome = next(outcomes, None)
            if outcome is None:
                raise ValueError(f"{self.engine.name} gave fewer reports than it got")
            yield self._judged(entry, outcome)

    def _judged(self, entry: Entry, outcome: NormalizedReport | RefusedError) -> Entry | LeftOut:
        raw = entry.study.report
        if isinstance(outcome, RefusedError):
            return entry.left_out("review", "normalize", outcome.reason, outcome.detail, report_record(raw, None))
        try:
            problems = built(self.check).problems(raw, outcome)
        except ValueError as error:
            return entry.left_out("review", "check", "unchecked", str(error), report_record(raw, outcome))
        if problems:
            names = ", ".join(dict.fromkeys(one.name for one in problems))
            report = {**report_record(raw, outcome), "problems": [asdict(one) for one in problems]}
            return entry.left_out("review", "check", problems[0].name, names, report)
        return replace(entry, normalized=outcome)

    def _redacted(self, entry: Entry | LeftOut) -> Entry | LeftOut:
        if self.redact is None or isinstance(entry, LeftOut):
            return entry
        report, counts = self.redact(entry.study.report)
        return replace(entry.with_report(report), redacted=dict(counts))
