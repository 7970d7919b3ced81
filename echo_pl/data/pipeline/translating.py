"""Step 4: a seeded share of the normalized reports is translated into Chinese.

Which ones is a function of seed and key. A report whose translation fails stays as it is, since as such it has passed its
check; it is counted. Knows translators by their protocol only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from echo_pl.data.pipeline.entries import Entry, LeftOut, encode, read_entries
from echo_pl.data.pipeline.files import write_lines
from echo_pl.data.pipeline.listing import chunk_path
from echo_pl.data.pipeline.parts import RefusedError, Translator
from echo_pl.reports.report import NormalizedReport
from echo_pl.reports.translation import chosen


@dataclass(frozen=True, kw_only=True)
class Translating:
    """The task of translating one file's share; called with its number, returns how many entries it has."""

    base: Path
    normalized: Path
    """Folder to read from."""
    folder: Path
    """Folder to write to."""
    translator: Translator
    share: float
    seed: int
    left_out: Collection[int]
    """Places that need none, as another step leaves them out."""

    def __call__(self, number: int) -> int:
        """Translate one file's share."""
        entries = list(read_entries(chunk_path(self.normalized, number), self.base))
        outcomes = self.translator.translate_many(_report(entry) for entry in entries if self._wanted(entry))
        write_lines(chunk_path(self.folder, number), (encode(one, self.base) for one in self._settled(entries, outcomes)))
        return len(entries)

    def _settled(
        self, entries: list[Entry | LeftOut], outcomes: Iterator[NormalizedReport | RefusedError]
    ) -> Iterator[Entry | LeftOut]:
        for entry in entries:
            if isinstance(entry, LeftOut) or not self._wanted(entry):
                yield entry
                continue
            outcome = next(outcomes, None)
            if outcome is None:
                raise ValueError("the translator gave fewer reports than it got")
            if isinstance(outcome, RefusedError):
                yield replace(entry, note=f"not translated: {outcome.reason}")
            else:
                yield replace(entry, normalized=outcome)

    def _wanted(self, entry: Entry | LeftOut) -> bool:
        if isinstance(entry, LeftOut) or entry.place in self.left_out:
            return False
        return entry.normalized is not None and entry.normalized.language == "en" and self._drawn(entry.study.key)

    def _drawn(self, key: str) -> bool:
        return chosen(key, seed=self.seed, share=self.share)


def _report(entry: Entry | LeftOut) -> NormalizedReport:
    assert isinstance(entry, Entry)  # _wanted lets no other through
    assert entry.normalized is not None
    return entry.normalized
