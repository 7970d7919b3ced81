"""Rule-based normalizer: from a raw report to seven regions and an impression.

Positive and uncertain statements keep their words. A denial becomes a canonical negative if every
word of it is in the tables. A region that the report does not mention gets a canonical sentence,
marked as imputed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from echo_pl.reports.canonical import NO_ABNORMALITY, filling, negatives, sentence
from echo_pl.reports.chinese import CHINESE
from echo_pl.reports.clauses import Clause, ClauseCutter
from echo_pl.reports.cleaning import clean, language_of
from echo_pl.reports.english import ENGLISH
from echo_pl.reports.kinds import REFERRING, Kind, kind_of
from echo_pl.reports.mention import Reader, Status
from echo_pl.reports.regions import OTHER, REGION_NAMES, SECTIONS
from echo_pl.reports.report import NormalizedReport, RawReport, Statement
from echo_pl.reports.response import Language

_NUMBERING = re.compile(r"^(?:\(?\d{1,2}[.)]\s*)+(?=\D)|^[-*•]\s*")
_CONJUNCTION = re.compile(r"^(?:and|but|or)\s+", re.IGNORECASE)
_VERDICTS = frozenset({"normal", "negative", "unremarkable", "正常"})
"""Impressions of one word."""
_HEADING = re.compile(
    r"^(?:(?:the\s+)?(?:findings?|impressions?|chest(?:\s+x-?ray)?|conclusions?|report|result|narrative|exam(?:ination)?|所见|结论|印象|诊断意见|影像所见)"
    r"\s*[:：]\s*)+",
    re.IGNORECASE,
)
_READERS: Final[dict[Language, Reader]] = {"en": ENGLISH, "zh": CHINESE}
_CUTTERS: Final = {language: ClauseCutter(reader, language) for language, reader in _READERS.items()}
_CACHED = 65_536
"""Most sentences kept in memory with their clauses: reports repeat each other's sentences."""


@lru_cache(maxsize=_CACHED)
def _kind(words: str, language: Language) -> Kind:
    return kind_of(words, _READERS[language].read(words))


@lru_cache(maxsize=_CACHED)
def _cut(words: str, language: Language) -> tuple[Clause, ...]:
    return tuple(_CUTTERS[language].cut(words, _READERS[language].read(words)))


@dataclass(slots=True)
class _Draft:
    """A report in progress."""

    clauses: list[Clause] = field(default_factory=list)
    meanings: list[str] = field(default_factory=list)
    """Sentences of the findings that belong to the impression."""
    dropped: Counter[str] = field(default_factory=Counter)
    present: set[str] = field(default_factory=set)
    """Positive and uncertain findings of both sections."""


def _key(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


class RuleNormalizer:
    """Normalizer of reports in English and Chinese, by rules.

    >>> raw = RawReport(findings="Heart size is normal. Small left effusion. No pneumothorax.", impression="Small effusion.")
    >>> print(RuleNormalizer().normalize(raw).text.findings)  # doctest: +NORMALIZE_WHITESPACE
    The thorax is symmetric. The mediastinum and trachea are midline. There is no pneumothorax. The
    heart is normal in size. The hila are unremarkable. Small left effusion. The bony structures are
    intact.
    """

    name = "rules-1"

    def normalize(self, report: RawReport) -> NormalizedReport:
        """Normalize one report.

        Raises:
            ValueError: the report has neither findings nor impression, or is in another language;
                no report text in the message.
        """
        findings, impression = clean(report.findings), clean(report.impression)
        dropped = findings.counts + impression.counts
        whole = f"{findings.text} {impression.text}".strip()
        if not re.search(r"\w", whole):
            raise ValueError("the report has neither findings nor impression")
        language = language_of(whole)
        draft = _Draft(dropped=dropped)
        final = self._impression(impression.text, language, draft)
        if re.search(r"\w", findings.text):
            self._findings(findings.text, language, draft)
        self._complement(final, language, draft)
        statements = self._statements(draft, language)
        conclusions = self._conclude(final, draft, language)
        imputed = not conclusions
        if imputed:
            found = [one.text for one in statements if not one.imputed and self._is_positive(one.text, language)]
            conclusions = list(dict.fromkeys(found)) or [NO_ABNORMALITY[language]]
        return NormalizedReport(
            statements=statements,
            impression=("" if language == "zh" else " ").join(conclusions),
            language=language,
            dropped=dict(+draft.dropped),
            impression_imputed=imputed,
        )

    def _sentences(self, text: str, language: Language, draft: _Draft) -> Iterable[tuple[str, Kind]]:
        """Yield sentences with their kind; technique, comparison ... are counted and omitted."""
        reader = _READERS[language]
        for one in reader.split(text):
            words = one if one[0].isalpha() else _NUMBERING.sub("", one)
            draft.dropped["numbering"] += words != one
            if ":" in words or "：" in words:
                words = _HEADING.sub("", words)
            words = _CONJUNCTION.sub("", words).strip()
            if not words:
                continue
            kind = _kind(words, language)
            if kind is Kind.REMNANT and words.lower() in _VERDICTS and not draft.dropped["deidentification"]:
                kind = Kind.INTERPRETATION
            if kind in (Kind.STATEMENT, Kind.INTERPRETATION):
                yield words, kind
            else:
                draft.dropped[kind.value] += 1

    def _note_present(self, text: str, language: Language, draft: _Draft) -> None:
        mentions = _READERS[language].read(text).mentions
        draft.present.update(one.concept for one in mentions if one.status is not Status.NEGATIVE)

    def _impression(self, text: str, language: Language, draft: _Draft) -> list[str]:
        """Return the sentences of the impression, each once."""
        kept: dict[str, str] = {}
        for words, _ in self._sentences(text, language, draft):
            draft.dropped["duplicate"] += _key(words) in kept
            kept.setdefault(_key(words), words)
            self._note_present(words, language, draft)
        return list(kept.values())

    def _findings(self, text: str, language: Language, draft: _Draft) -> None:
        """Add the clauses of the findings; interpretations are kept for the impression."""
        seen: set[str] = set()
        for words, kind in self._sentences(text, language, draft):
            if _key(words) in seen:
                draft.dropped["duplicate"] += 1
                continue
            seen.add(_key(words))
            self._note_present(words, language, draft)
            if kind is Kind.INTERPRETATION:
                draft.meanings.append(words)
            else:
                clauses = list(_cut(words, language))
                if draft.clauses and REFERRING.search(words):
                    before = draft.clauses[-1].regions
                    clauses = [replace(one, regions=before) if one.regions == (OTHER,) else one for one in clauses]
                draft.clauses += clauses

    def _complement(self, impression: Sequence[str], language: Language, draft: _Draft) -> None:
        """Add clauses of the impression about regions that the findings do not mention."""
        alone = not draft.clauses  # the report has no findings: the impression is the source
        stated = {region for one in draft.clauses if not one.device for region in one.regions}
        statements = [one for one in impression if _kind(one, language) is not Kind.INTERPRETATION]
        interpretations = [one for one in impression if one not in statements]
        for words in (*statements, *interpretations, *draft.meanings):
            if words in interpretations or words in draft.meanings:
                stated = {region for one in draft.clauses if not one.device for region in one.regions}
            found = _READERS[language].read(words)
            if _kind(words, language) is Kind.INTERPRETATION and not found.mentions:
                continue
            if not alone and not found.mentions and not found.normals:
                continue
            for clause in _cut(words, language):
                if not stated.intersection(clause.regions) and (alone or clause.regions != (OTHER,)):
                    draft.clauses.append(clause)

    def _statements(self, draft: _Draft, language: Language) -> tuple[Statement, ...]:
        sections: dict[str, list[Statement]] = {name: [] for name in SECTIONS}
        stated: set[str] = set()
        denied: dict[str, dict[str, str]] = {name: {} for name in SECTIONS}
        for clause in sorted(draft.clauses, key=lambda one: one.canonical):
            home = sections[clause.regions[0]]
            stated.update(() if clause.device else clause.regions)
            for noun in clause.denied:
                denied[clause.regions[0]].setdefault(noun, clause.source)
            if clause.text and all(_key(one.text) != _key(clause.text) for one in home):
                home.append(Statement(section=clause.regions[0], text=clause.text, source=clause.source))
        for region, nouns in denied.items():
            if nouns:
                source = " ".join(dict.fromkeys(nouns.values()))
                sections[region].append(Statement(section=region, text=negatives(list(nouns), language), source=source))
        self._repeat_in_regions(draft.clauses, sections)
        for region in REGION_NAMES:
            if region not in stated:
                sections[region].append(Statement(section=region, text=filling(region, draft.present, language), imputed=True))
        return tuple(one for name in SECTIONS for one in sections[name])

    def _repeat_in_regions(self, clauses: Sequence[Clause], sections: dict[str, list[Statement]]) -> None:
        """Repeat a clause about several regions in each that has nothing else but devices."""
        stated = {one.regions[0] for one in clauses if not one.device}
        for clause in clauses:
            for region in clause.regions[1:]:
                if region not in stated and clause.text:
                    stated.add(region)
                    sections[region].append(Statement(section=region, text=clause.text, source=clause.source))

    def _conclude(self, impression: Sequence[str], draft: _Draft, language: Language) -> list[str]:
        """Return the impression with the interpretations of the findings."""
        reader = _READERS[language]
        kept = {_key(one): sentence(one) for one in impression}
        normal = any(reader.read(one).globally_normal for one in impression)
        for words in draft.meanings:
            if _key(words) in kept or (normal and reader.read(words).globally_normal and not reader.read(words).mentions):
                draft.dropped["duplicate"] += _key(words) not in kept or bool(impression)
                continue
            kept[_key(words)] = sentence(words)
        return list(kept.values())

    def _is_positive(self, text: str, language: Language) -> bool:
        """Return True if the text has a positive or uncertain mention."""
        mentions = _READERS[language].read(text.rstrip(".。")).mentions
        return any(one.status is not Status.NEGATIVE for one in mentions)
