"""Completeness of a normalized report: it states all that the original states, and nothing else.

Both texts are labelled and compared both ways; numbers and words are compared literally. The check
depends on the texts alone, not on the normalizer that wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from echo_pl.reports.cleaning import clean, is_chinese, language_of
from echo_pl.reports.kinds import Kind, about_the_examination, kind_of
from echo_pl.reports.labeller import Label, Labeller, summarize
from echo_pl.reports.mention import Mention, Reader, Status
from echo_pl.reports.regions import REGION_NAMES
from echo_pl.reports.report import NormalizedReport, RawReport
from echo_pl.reports.tables import read_table, words_of
from echo_pl.reports.vocabulary import DEVICES

_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?=(?:st|nd|rd|th|mm|cm|%)?\b)|(?<=[a-zA-Z])\d+\b")
_LIST_NUMBER = re.compile(r"^(?:\(?\d{1,2}[.)]\s*)+(?=\D)")
_WORD = re.compile(r"[a-z]{3,}")
_UNIMPORTANT = words_of(read_table("words")["unimportant"])
_HELD = (Status.POSITIVE, Status.UNCERTAIN)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A difference between a normalized report and its original."""

    name: str
    """``region_missing``, ``contradiction``, ``certainty_changed``, ``side_changed``,
    ``place_changed``, or one of ``finding_``, ``device_``, ``denial_``, ``claim_``, ``number_`` and
    ``words_`` followed by ``lost`` or ``invented``."""
    detail: str
    """Region, finding, number or, for ``words_``, a single word; never a sentence."""


@dataclass(frozen=True, kw_only=True)
class _Sentence:
    text: str
    kind: Kind
    mentions: tuple[Mention, ...]
    plain: bool
    """Neither a negation nor normality: all its words should be kept."""


class CompletenessCheck:
    """Compares a normalized report with its original.

    Args:
        verbatim: words of positive statements must be kept as well. The rule engine keeps them; a
            language model rewords.
    """

    def __init__(self, *, verbatim: bool = False) -> None:
        self._labeller, self._verbatim = Labeller(), verbatim

    def problems(self, raw: RawReport, normalized: NormalizedReport) -> list[Problem]:
        """Return all differences; a report with one is not usable.

        Raises:
            ValueError: no reader has the language of the original.
        """
        text = f"{clean(raw.findings).text}\n\n{clean(raw.impression).text}"
        language_of(text)
        stated_text = "\n\n".join([*(one.text for one in normalized.statements if not one.imputed), normalized.impression])
        fillings = "\n\n".join(one.text for one in normalized.statements if one.imputed)
        before, after, filled = (self._sentences(one, self._labeller.reader(one)) for one in (text, stated_text, fillings))
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
        original = {word for one in before for word in _WORD.findall(one.text.lower())}
        due = [one for one in before if one.plain and one.kind not in (Kind.COMMUNICATION, Kind.REMNANT)]
        due = [one for one in due if not about_the_examination(one.text)]
        wanted = {word for one in due for word in _WORD.findall(one.text.lower())}
        for word in sorted(wanted - kept - _UNIMPORTANT):
            yield Problem(name="words_lost", detail=word)
        found = {word for one in after if one.plain for word in _WORD.findall(one.text.lower())}
        for word in sorted(found - original - _UNIMPORTANT):
            yield Problem(name="words_invented", detail=word)


def _numbers(before: list[_Sentence], after: list[_Sentence]) -> Iterable[Problem]:
    """Compare the numbers in statements about the patient."""
    kinds = (Kind.STATEMENT, Kind.INTERPRETATION)
    raw = {number for one in before if one.kind in kinds for number in _NUMBER.findall(one.text)}
    everything = {number for one in before for number in _NUMBER.findall(one.text)}
    found = {number for one in after for number in _NUMBER.findall(one.text)}
    for number in sorted(raw - found):
        yield Problem(name="number_lost", detail=number)
    for number in sorted(found - everything):
        yield Problem(name="number_invented", detail=number)


def _findings(before: list[_Sentence], after: list[_Sentence], filled: list[_Sentence]) -> Iterable[Problem]:
    raw = summarize(m for one in before for m in one.mentions)
    found = summarize(m for one in after for m in one.mentions)
    for name, was in raw.items():
        yield from _compare(name, was, found[name])
    yield from _single_claims(before, after)
    denied = {m.concept for one in filled for m in one.mentions if m.status is Status.NEGATIVE}
    for name in sorted(denied):
        if raw[name].present or found[name].present:
            yield Problem(name="contradiction", detail=name)
    for one in filled:
        for mention in one.mentions:
            if mention.status in _HELD:
                yield Problem(name="finding_invented", detail=mention.concept)


def _compare(name: str, was: Label, now: Label) -> Iterable[Problem]:
    """Compare the labels of one finding."""
    thing = "device" if name in DEVICES else "finding"
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


def _single_claims(before: list[_Sentence], after: list[_Sentence]) -> Iterable[Problem]:
    """Compare single claims, which a label hides: one of two nodules, a denial beside a finding."""
    raw, found = _claims(before), _claims(after)
    for claim in sorted(raw - found, key=str):
        yield Problem(name="claim_lost", detail=_describe(claim))
    for claim in sorted(found - raw, key=str):
        yield Problem(name="claim_invented", detail=_describe(claim))


_Claim = tuple[str, Status, tuple[str, ...], tuple[str, ...]]


def _claims(sentences: list[_Sentence]) -> set[_Claim]:
    return {m.claim for one in sentences for m in one.mentions if m.status in _HELD}


def _describe(claim: _Claim) -> str:
    name, status, sides, zones = claim
    return " ".join((name, status.value, *sides, *zones))
