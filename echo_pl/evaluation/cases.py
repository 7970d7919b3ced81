"""Predictions paired with references by study id, formatted alike and checked for one language."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from echo_pl.reports.response import FORMS
from echo_pl.structs import ReportText

Sections = Literal["both", "findings", "impression"]
EMPTY = ReportText(findings="", impression="")
_SHOWN = 10


def _heading(written: str) -> re.Pattern[str]:
    """Pattern of a heading in any case, singular or plural, with or without marks of Markdown."""
    word = written[:-1].removesuffix("s")
    return re.compile(rf"(?:^|(?<=\W))[*_#\s]*{word}s?[*_\s]*[:\uff1a][*_]*", re.IGNORECASE)


_HEADINGS = [(_heading(form.findings), _heading(form.impression)) for form in FORMS.values()]
_SENTENCE_ENDS = re.compile(r"(?:^|[.!?:\n\u3002\uff1a])\s*$")
_IDEOGRAPH = re.compile(r"[\u4e00-\u9fff]")
_LETTER = re.compile(r"[^\W\d_\u4e00-\u9fff]")


class UnmatchedIdsError(ValueError):
    """Predictions and references have different study ids."""

    def __init__(self, message: str, only_first: Sequence[str], only_second: Sequence[str]) -> None:
        super().__init__(message)
        self.only_first = tuple(only_first)
        self.only_second = tuple(only_second)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Generated report of a study, with facts about its decoding."""

    report: ReportText
    parsed: bool = True
    """False: it has no headings, or is not a text; it is scored as an empty report."""
    stopped: bool | None = None
    """True if it ended with eos; None: unknown."""
    looped: bool | None = None
    eos_confidence: float | None = None
    """Probability of the first eos token when it was committed."""
    nfe: float | None = None
    """Forwards after prefill, KV writes included."""
    forwards_per_block: float | None = None
    """Forwards, KV writes left out, over blocks begun: 1 at one step per block."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A study's prediction and reference."""

    key: str
    prediction: Prediction
    reference: ReportText


def join(predictions: Mapping[str, Prediction], references: Mapping[str, ReportText]) -> list[Case]:
    """Pair by id, in the order of the references.

    Raises:
        UnmatchedIdsError: an id is on one side only.
    """
    require_same_ids(predictions, references, "predictions", "references")
    return [Case(key=key, prediction=predictions[key], reference=reference) for key, reference in references.items()]


def require_same_ids(first: Mapping[str, Any], second: Mapping[str, Any], name: str, other: str) -> None:
    """Raise UnmatchedIdsError, with both lists in full, if two sets of ids differ."""
    only_first = [key for key in first if key not in second]
    only_second = [key for key in second if key not in first]
    if only_first or only_second:
        raise UnmatchedIdsError(
            f"{name} and {other} are not of the same studies ({len(first)} and {len(second)}): {len(only_first)} ids only in "
            f"{name} ({shown(only_first)}), {len(only_second)} only in {other} ({shown(only_second)})",
            only_first,
            only_second,
        )


def require_same_references(ours: Mapping[str, ReportText], theirs: Mapping[str, ReportText]) -> None:
    """Raise ValueError if an id has different references in two runs, because two corpora may share ids by chance."""
    others = [key for key, report in theirs.items() if key in ours and formatted(report) != formatted(ours[key])]
    if others:
        raise ValueError(
            f"{len(others)} of {len(ours)} studies have another reference in the other run: {shown(others)}; these are not the "
            "same studies, or not the same version of their reports. To score both against one set, give --references"
        )


def require_sections(cases: Sequence[Case], sections: Sections) -> None:
    """Raise ValueError if a reference is empty in the scored sections, where every prediction would count as wrong."""
    without = [case.key for case in cases if not formatted(case.reference, sections)]
    if without:
        raise ValueError(
            f"{len(without)} of {len(cases)} references have no {sections}: {shown(without)}; score --sections both, or leave "
            "these studies out of predictions and references"
        )


def formatted(report: ReportText, sections: Sections = "both") -> str:
    """Report as the one text that is scored, for predictions and references alike.

    Headings are left out and white space becomes one space. Each metric splits into words and lower-cases by itself.

    >>> formatted(ReportText(findings="Clear  lungs.", impression="Normal."))
    'Clear lungs. Normal.'
    """
    chosen = {"both": f"{report.findings} {report.impression}", "findings": report.findings, "impression": report.impression}
    return " ".join(chosen[sections].split())


def language_of(text: str) -> str | None:
    """``zh`` if at least three in ten letters are ideographs, else ``en``; None for a text without letters.

    >>> language_of("心影正常"), language_of("clear lungs"), language_of("...")
    ('zh', 'en', None)
    """
    ideographs, letters = len(_IDEOGRAPH.findall(text)), len(_LETTER.findall(text))
    if not ideographs + letters:
        return None
    return "zh" if 10 * ideographs >= 3 * (ideographs + letters) else "en"


def check_language(cases: Sequence[Case], language: str, whose: str = "predictions") -> list[str]:
    """Return the ids whose prediction is in another language; they are scored unchanged. ``whose`` names them in an error.

    Raises:
        ValueError: references, or most predictions, are in another language than the scores are for.
    """

    def others(texts: Mapping[str, str]) -> list[str]:
        return [key for key, text in texts.items() if language_of(text) not in (None, language)]

    wrong = others({case.key: formatted(case.reference) for case in cases})
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(cases)} references are not in language {language!r}: {shown(wrong)}; give --language, or "
            "score each language by itself"
        )
    strange = others({case.key: formatted(case.prediction.report) for case in cases})
    if 2 * len(strange) > len(cases):
        raise ValueError(
            f"{len(strange)} of {len(cases)} {whose} are not in language {language!r}, the references are: {shown(strange)}; "
            "are these the predictions for these references?"
        )
    return strange


def parsed_prediction(text: str, *, free_text: bool = False) -> Prediction:
    """Parse a response into a prediction. Headings are found in any case, singular or plural, bold or not.

    >>> parsed_prediction("the lungs are").parsed
    False
    >>> parsed_prediction("FINDINGS: Clear lungs. IMPRESSION : Normal.").report
    ReportText(findings='Clear lungs.', impression='Normal.')
    >>> parsed_prediction("Here it is. **Finding:** Clear lungs. **Impressions:** Normal.").report
    ReportText(findings='Clear lungs.', impression='Normal.')
    """
    if free_text:
        return Prediction(report=ReportText(findings=text.strip(), impression=""))
    report = _by_headings(text)
    return Prediction(report=EMPTY, parsed=False) if report is None else Prediction(report=report)


def parsed_reference(text: str) -> ReportText:
    """Parse a reference that is one text like a prediction; without headings all of it is findings."""
    return _by_headings(text) or ReportText(findings=text.strip(), impression="")


def _by_headings(text: str) -> ReportText | None:
    """Text after the two headings in either language; None without headings.

    Text before the heading of the findings ("Here is the report.") is dropped. Without an impression, that heading must begin the
    text or a sentence: "no new findings: unchanged" has no heading.
    """
    for findings, impression in _HEADINGS:
        last = impression.search(text)
        head = text[: last.start()] if last else text
        first = findings.search(head)
        if last or (first and _SENTENCE_ENDS.search(head[: first.start()])):
            start = first.end() if first and _SENTENCE_ENDS.search(head[: first.start()]) else 0
            return ReportText(findings=head[start:].strip(), impression=text[last.end() :].strip() if last else "")
    return None


def shown(keys: Sequence[str]) -> str:
    """The first few of a list of ids, and how many more there are."""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more if keys else "none"
