"""Literal comparison of a normalized report with its original: numbers, sides, words. English.

Shares no table and no rule with the labeller, so it does not repeat the labeller's errors. It sees
less: a sentence with a word of negation or normality is unclear, and clauses are not analysed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from echo_pl.reports.report import NormalizedReport, RawReport

_MARK = re.compile(r"(?:x-)?X{2,}", re.IGNORECASE)
_LIST_NUMBER = re.compile(r"(?<!\S)\(?\d{1,2}[.)](?=\s*(?:[A-Za-z.,]|$))")
_END = re.compile(r"(?<=[.?!;])\s+|\n+|(?<=[a-z])\.(?=[A-Z])")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WORD = re.compile(r"[a-z]+")
_SIDES: Final = re.compile(r"left(?:ward)?|right(?:ward)?|bilateral(?:ly)?|both|bibasilar|biapical|bihilar|lingular?")
_UNCLEAR = re.compile(
    r"\b(?:no|not|without|free|clear|clearing|cleared|negative|unremarkable|normal|normally|nor|neither|absent|absence|never|resolved|"
    r"resolution|cannot|within|none|rather|lack|intact|excluded?|removed|removal)\b"
)
_EXAMINATION = re.compile(
    r"\b(?:images?|views?|obtained|submitted|message|called|discussed|notified|dated?|comparison|compared)\b|\d/"
)
_DENIED = r"\b(?:no|without|negative for|free of)\s+(?:evidence\s+of\s+)?(?:\w+\s+){0,2}?\w*"
_STEM_WORDS: Final = """
    effusion opacit densit consolid infiltrat airspace atelecta pneumoni edema congest nodul mass granulom scar cicatri fibro
    emphysem copd hyperinflat hyperexpan hypoinflat hypoventil cavit bronchiect pneumothora tubercul lucen cardiomegal enlarge
    failure calcif tortu ectati atheroscler aneurysm widen hernia adenopath goiter thicken blunt elevat flatten eventrat fractur
    degenerat osteophyt spondyl arthri scolio kypho osteopor osteopen demineral deform compress disloc sclero lytic lesion tumor
    metasta neoplas sarcoid interstit hypertens crowd bulla bleb collapse prominen irregular wedg callus haz reticul cuffing
    engorg cephaliz resect mastect lobect pneumonect shift deviat pacemaker pacer icd defibrill sternotom wire cabg clip suture
    stapl catheter picc mediport tube tracheost stent valve prosthe implant stimul screw hardware filter shunt bullet shrapnel
    buckle device postop surg
    """
_STEMS: Final = tuple(_STEM_WORDS.split())
_PATTERNS: Final = {stem: re.compile(rf"\b{stem}" if len(stem) < 5 else stem) for stem in _STEMS}
_DENIALS: Final = {stem: re.compile(_DENIED + stem) for stem in _STEMS}


def plain_violations(raw: RawReport, normalized: NormalizedReport) -> list[tuple[str, str]]:
    """Return the differences: (``number_lost``, number), (``side_lost``, side and next word),
    (``word_lost``, stem) ...

    ``word_affirmed`` is a word that the original only denies. Imputed statements are not compared.
    """
    before = [*_sentences(raw.findings), *_sentences(raw.impression)]
    stated = [one.text for one in normalized.statements if not one.imputed]
    after = [sentence for text in (*stated, normalized.impression) for sentence in _sentences(text, lists=False)]
    return [*_numbers(before, after), *_sides(before, after), *_words(before, after)]


def _sentences(text: str, *, lists: bool = True) -> list[str]:
    text = _MARK.sub(" ", text)
    return [one.lower() for one in _END.split(_LIST_NUMBER.sub(". ", text) if lists else text) if _WORD.search(one.lower())]


def _numbers(before: list[str], after: list[str]) -> Iterable[tuple[str, str]]:
    everything = {number for one in before for number in _NUMBER.findall(one)}
    due = {number for one in before if not _EXAMINATION.search(one) for number in _NUMBER.findall(one)}
    stated = {number for one in after for number in _NUMBER.findall(one)}
    yield from (("number_lost", number) for number in sorted(due - stated))
    yield from (("number_invented", number) for number in sorted(stated - everything))


def _sides(before: list[str], after: list[str]) -> Iterable[tuple[str, str]]:
    due = {pair for one in before if not _UNCLEAR.search(one) and not _EXAMINATION.search(one) for pair in _pairs(one)}
    stated = {pair for one in after for pair in _pairs(one)}
    yield from (("side_lost", " ".join(pair)) for pair in sorted(due - stated))
    yield from (("side_invented", " ".join(pair)) for pair in sorted(stated - {pair for one in before for pair in _pairs(one)}))


def _pairs(sentence: str) -> Iterable[tuple[str, str]]:
    """Return each side with the word after it, up to the next comma."""
    for part in re.split("[,;]", sentence):
        words = _WORD.findall(part)
        yield from (pair for pair in pairwise(words) if _SIDES.fullmatch(pair[0]))


def _words(before: list[str], after: list[str]) -> Iterable[tuple[str, str]]:
    plain_before = " . ".join(one for one in before if not _UNCLEAR.search(one))
    plain_after = " . ".join(one for one in after if not _UNCLEAR.search(one))
    everything = " . ".join(before)
    for stem, pattern in _PATTERNS.items():
        there, stated = pattern.search(plain_before), pattern.search(plain_after)
        if there and not stated:
            yield "word_lost", stem
        elif stated and not there:
            if not pattern.search(everything):
                yield "word_invented", stem
            elif len(_DENIALS[stem].findall(everything)) == len(pattern.findall(everything)):
                yield "word_affirmed", stem
