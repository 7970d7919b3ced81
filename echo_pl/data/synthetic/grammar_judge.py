"""The judge of a corpus written by a grammar: the same tables, read backwards.

A sentence is valid if, and only if, the grammar can produce it letter by letter; a report is well formed if the grammar
could have written the whole of it for some set of findings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from echo_pl.data.store.study import Version
from echo_pl.data.synthetic.grammar import (
    NORMAL_IMPRESSIONS,
    POSITIVE_IMPRESSIONS,
    RAW_NORMAL,
    Finding,
    Observation,
    ReportGrammar,
)
from echo_pl.reports.regions import REGION_NAMES, REGIONS
from echo_pl.reports.report import ParsedReport
from echo_pl.reports.sentences import split_at_marks
from echo_pl.structs import ReportText

_LIST_SEPARATOR = re.compile(r", | and ")


class _Meaning(NamedTuple):
    region: str
    observation: Observation | None
    """None: the report states that the region is normal."""


class GrammarJudge:
    """Implements :class:`echo_pl.reports.report.ReportJudge` for a :class:`ReportGrammar`.

    Args:
        grammar: The grammar that wrote the corpus. How often it uses a wording plays no part.
        version: Which of its two kinds of report are to be expected.
        detailed: Whether findings carry their size (``effusion_left:small``), for a stricter score.

    Raises:
        ValueError: If two findings of the grammar share a sentence, so that it cannot be read back.
    """

    def __init__(self, grammar: ReportGrammar, *, version: Version = "normalized", detailed: bool = False) -> None:
        self._grammar = grammar
        self._version = version
        self._detailed = detailed
        self._sentences: dict[str, _Meaning] = {}
        self._phrases: dict[str, list[Observation]] = {}
        if version == "normalized":
            for region in REGIONS:
                self._add(region.normal, _Meaning(region.name, None))
        else:
            self._add(RAW_NORMAL, _Meaning("", None))
        for finding in grammar.findings.values():
            self._add_finding(finding)

    @property
    def signature(self) -> str:
        """Settings of the judge, for the signatures of scores."""
        return f"grammar {self._grammar.digest} of {self._version} reports{', with sizes' if self._detailed else ''}"

    def parse(self, report: ReportText) -> ParsedReport:
        """Read a report back. Never raises, whatever the text."""
        sentences = split_at_marks(report.findings, ".", keep=True)
        meanings = [self._sentences.get(sentence) for sentence in sentences]
        closing = split_at_marks(report.impression, ".", keep=True)
        summaries = [self._read_impression(sentence) for sentence in closing]
        known = [meaning for meaning in meanings if meaning is not None]
        seen = [meaning.observation for meaning in known if meaning.observation is not None]
        well_formed = (
            len(known) == len(meanings)
            and len(summaries) == 1
            and summaries[0] is not None
            and report == ReportText(findings=" ".join(sentences), impression=closing[0])
            and self._could_be_written(known)
            and self._agrees(seen, summaries[0])
        )
        return ParsedReport(
            findings=frozenset(o.detailed if self._detailed else o.name for o in seen),
            sentences=(
                *((text, meaning is not None) for text, meaning in zip(sentences, meanings, strict=True)),
                *((text, summary is not None) for text, summary in zip(closing, summaries, strict=True)),
            ),
            well_formed=well_formed,
        )

    def _add_finding(self, finding: Finding) -> None:
        wordings = finding.wordings if self._version == "normalized" else finding.brief
        for size in finding.sizes or ("",):
            observation = Observation(name=finding.name, size=size)
            self._add((w.format(size=size) for w in wordings), _Meaning(finding.region, observation))
            for phrase in finding.summaries:
                self._phrases.setdefault(phrase.format(size=size), []).append(observation)

    def _add(self, sentences: Iterable[str], meaning: _Meaning) -> None:
        for sentence in sentences:
            if self._sentences.setdefault(sentence, meaning) != meaning:
                raise ValueError(f"the grammar means two things by {sentence!r}: it cannot be read back")

    def _could_be_written(self, meanings: list[_Meaning]) -> bool:
        """Return True if these valid sentences are a findings section; a normalized one has all regions, in order."""
        seen = [meaning.observation for meaning in meanings if meaning.observation is not None]
        names = [observation.name for observation in seen]
        if len(set(names)) != len(names) or len(names) > self._grammar.max_findings:
            return False
        if self._version == "raw":
            return bool(meanings) and (not seen or len(seen) == len(meanings)) and (bool(seen) or len(meanings) == 1)
        places = [self._grammar.order[name] for name in names]
        regions = [meaning.region for meaning in meanings]
        normal = [meaning.region for meaning in meanings if meaning.observation is None]
        return (
            places == sorted(places)
            and tuple(dict.fromkeys(regions)) == REGION_NAMES
            and all(regions.count(region) == 1 for region in normal)
            and regions == sorted(regions, key=REGION_NAMES.index)
        )

    def _read_impression(self, sentence: str) -> list[list[Observation]] | None:
        """Return the observations that each phrase of an impression may mean, or None if it could not be written."""
        if sentence in NORMAL_IMPRESSIONS:
            return []
        for template in POSITIVE_IMPRESSIONS:
            start, end = template.split("{list}")
            if sentence.startswith(start) and sentence.endswith(end) and len(sentence) > len(start) + len(end):
                inner = sentence[len(start) : len(sentence) - len(end)]
                read = self._read_list(inner)
                if read is not None:
                    return read
        return None

    def _read_list(self, text: str) -> list[list[Observation]] | None:
        separators = _LIST_SEPARATOR.findall(text)
        if separators != [", "] * (len(separators) - 1) + [" and "] * bool(separators):
            return None
        phrases = [self._phrases.get(phrase) for phrase in _LIST_SEPARATOR.split(text)]
        read = [meaning for meaning in phrases if meaning is not None]
        return read if len(read) == len(phrases) else None

    def _agrees(self, seen: list[Observation], summary: list[list[Observation]] | None) -> bool:
        """Return True if the impression names exactly the findings seen, in the order of the grammar."""
        ordered = sorted(seen, key=lambda observation: self._grammar.order[observation.name])
        return (
            summary is not None
            and len(summary) == len(ordered)
            and all(observation in meanings for observation, meanings in zip(ordered, summary, strict=True))
        )
