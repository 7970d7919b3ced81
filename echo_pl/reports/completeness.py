"""Whether a normalized report says all that the original says, and nothing else.

Both texts are labelled apart and compared both ways; numbers and words are compared as they stand. Knows nothing of how a
report was normalized: it reads the raw report and the text of the normalized one, whoever made it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from echo_pl.reports.cleaning import clean, is_chinese, language_of
from echo_pl.reports.concepts import is_device
from echo_pl.reports.kinds import Kind, about_the_examination, kind_of
from echo_pl.reports.labeller import Label, Labeller, summarize
from echo_pl.reports.lexicon import word_set
from echo_pl.reports.mention import Mention, Reader, Status
from echo_pl.reports.regions import REGION_NAMES
from echo_pl.reports.report import NormalizedReport, RawReport

_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?=(?:st|nd|rd|th|mm|cm|%)?\b)|(?<=[a-zA-Z])\d+\b")
_LIST_NUMBER = re.compile(r"^(?:\(?\d{1,2}[.)]\s*)+(?=\D)")
_WORD = re.compile(r"[a-z]{3,}")
_SAID_ELSEWHERE = word_set(
    """
    the and with there are has have been was were this that these those for from which but however although though while without
    also not otherwise seen noted identified present findings finding impression chest
    """
)
_HELD = (Status.POSITIVE, Status.UNCERTAIN)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with a normalized report."""

    name: str
    """``region_missing``, ``contradiction``, ``certainty_changed``, ``side_changed``, ``place_changed``, or one of ``finding_``,
    ``device_``, ``denial_``, ``claim_``, ``number_`` and ``words_`` with ``lost`` or ``invented`` behind it."""
    detail: str
    """Which region, finding, number or, for ``words_``, single word; never a sentence."""


@dataclass(frozen=True, kw_only=True)
class _Sentence:
    text: str
    kind: Kind
    mentions: tuple[Mention, ...]
    plain: bool
    """Has neither denial nor normality: all its words should be kept."""


class CompletenessCheck:
    """Compares a normalized report with its original.

    Args:
        verbatim: what is there must also have kept its words, as the rule engine promises. Leave it off for
            an engine that rewords.
    """

    def __init__(self, *, verbatim: bool = False) -> None:
        self._labeller, self._verbatim = Labeller(), verbatim

    def problems(self, raw: RawReport, normalized: NormalizedReport) -> list[Problem]:
        """Everything that is wrong; a report with a problem is not to be used.

        Raises:
            ValueError: the original is in a language that has no reader.
        """
        text = f"{clean(raw.findings).text}\n\n{clean(raw.impression).text}"
        language_of(text)
        own_text = "\n\n".join([*(one.text for one in normalized.statements if not one.imputed), normalized.impression])
        fillings = "\n\n".join(one.text for one in normalized.statements if one.imputed)
        before, after, filled = (self._sentences(one, self._labeller.reader(one)) for one in (text, own_text, fillings))
        found = [*self._regions(normalized), *_findings(before, after, filled), *_numbers(before, after)]
        if self._verbatim and not is_chinese(text):
            found += self._words(before, after)
        return found

    def _sentences(self, text: str, reader: Reader) -> list[_Sentence]:
        sentences = []
        for one in reader.split(text):
            words = _LIST_NUMBER.sub("", one)
            read = reader.read(words)
            plain = not read.normals and not read.globally_normal and all(m.status is not Status.NEGATIVE for m in read.mentions)
            sentences.append(_Sentence(text=words, kind=kind_of(words, read), mentions=read.mentions, plain=plain))
        return sentences

    def _regions(self, normalized: NormalizedReport) -> Iterable[Problem]:
        stated = {one.section for one in normalized.statements}
        for region in REGION_NAMES:
            if region not in stated:
                yield Problem(name="region_missing", detail=region)

    def _words(self, before: list[_Sentence], after: list[_Sentence]) -> Iterable[Problem]:
        kept = {word for one in after for word in _WORD.findall(one.text.lower())}
        known = {word for one in before for word in _WORD.findall(one.text.lower())}
        due = [one for one in before if one.plain and one.kind not in (Kind.COMMUNICATION, Kind.REMNANT)]
        due = [one for one in due if not about_the_examination(one.text)]
        said = {word for one in due for word in _WORD.findall(one.text.lower())}
        for word in sorted(said - kept - _SAID_ELSEWHERE):
            yield Problem(name="words_lost", detail=word)
        told = {word for one in after if one.plain for word in _WORD.findall(one.text.lower())}
        for word in sorted(told - known - _SAID_ELSEWHERE):
            yield Problem(name="words_invented", detail=word)


def _numbers(before: list[_Sentence], after: list[_Sentence]) -> Iterable[Problem]:
    """Numbers of what is said of the patient."""
    kinds = (Kind.STATEMENT, Kind.INTERPRETATION)
    raw = {number for one in before if one.kind in kinds for number in _NUMBER.findall(one.text)}
    everything = {number for one in before for number in _NUMBER.findall(one.text)}
    told = {number for one in after for number in _NUMBER.findall(one.text)}
    for number in sorted(raw - told):
        yield Problem(name="number_lost", detail=number)
    for number in sorted(told - everything):
        yield Problem(name="number_invented", detail=number)


def _findings(before: list[_Sentence], after: list[_Sentence], filled: list[_Sentence]) -> Iterable[Problem]:
    raw = summarize(m for one in before for m in one.mentions)
    told = summarize(m for one in after for m in one.mentions)
    for name, was in raw.items():
        yield from _compare(name, was, told[name])
    yield from _said_of_each(before, after)
    denied = {m.concept for one in filled for m in one.mentions if m.status is Status.NEGATIVE}
    for name in sorted(denied):
        if raw[name].present or told[name].present:
            yield Problem(name="contradiction", detail=name)
    for one in filled:
        for mention in one.mentions:
            if mention.status in _HELD:
                yield Problem(name="finding_invented", detail=mention.concept)


def _compare(name: str, was: Label, now: Label) -> Iterable[Problem]:
    """What is said of one finding before and after."""
    thing = "device" if is_device(name) else "finding"
    if was.present and not now.present:
        yield Problem(name=f"{thing}_lost", detail=name)
    elif now.present and not was.present:
        yield Problem(name=f"{thing}_invented", detail=name)
    elif was.present and was.status is not now.status:
        yield Problem(name="certainty_changed", detail=name)
    elif was.status is Status.NEGATIVE and now.status is Status.ABSENT:
        yield Problem(name="denial_lost", detail=name)
    elif now.status is Status.NEGATIVE and was.status is Status.ABSENT:
        yield Problem(name="denial_invented", detail=name)
    elif was.present and was.sides != now.sides:
        yield Problem(name="side_changed", detail=name)
    elif was.present and was.zones != now.zones:
        yield Problem(name="place_changed", detail=name)


def _said_of_each(before: list[_Sentence], after: list[_Sentence]) -> Iterable[Problem]:
    """Single claims of what is there, that a label does not show: one of two nodules, a denial beside a finding."""
    raw, told = _claims(before), _claims(after)
    for claim in sorted(raw - told, key=str):
        yield Problem(name="claim_lost", detail=_describe(claim))
    for claim in sorted(told - raw, key=str):
        yield Problem(name="claim_invented", detail=_describe(claim))


_Claim = tuple[str, Status, tuple[str, ...], tuple[str, ...]]


def _claims(sentences: list[_Sentence]) -> set[_Claim]:
    return {m.claim for one in sentences for m in one.mentions if m.status in _HELD}


def _describe(claim: _Claim) -> str:
    name, status, sides, zones = claim
    return " ".join((name, status.value, *sides, *zones))


def names(problems: Iterable[Problem]) -> Mapping[str, int]:
    """How often each problem occurs."""
    counts: dict[str, int] = {}
    for one in problems:
        counts[one.name] = counts.get(one.name, 0) + 1
    return counts
