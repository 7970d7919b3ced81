"""Says a normalized English report in Chinese, as far as the canonical tables go.

Covers the canonical sentences: negatives, normal parts, fillings, and the impression of a report without findings. What kept
the words of the original is not in the tables; it goes to a translator that the caller gives, or the report is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Final

from echo_pl.reports.anatomy import PARTS
from echo_pl.reports.canonical import NO_ABNORMALITY, filling, negatives, no_abnormality_of, sentence
from echo_pl.reports.chinese_terms import NORMAL_PARTS_ZH, NOUNS_ZH, PART_NOUNS_ZH, REGION_NORMAL_ZH
from echo_pl.reports.concepts import CONCEPT_NAMES, CONCEPTS
from echo_pl.reports.regions import REGIONS
from echo_pl.reports.report import NormalizedReport

_QUALIFIERS: Final = {
    "focal": "局灶性",
    "acute": "急性",
    "active": "活动性",
    "displaced": "移位性",
    "definite": "明确的",
    "suspicious": "可疑",
    "significant": "明显的",
    "new": "新发",
}
_NEGATIVE = re.compile(r"^There is no (.+)\.$")


@cache
def _sentences() -> dict[str, str]:
    """Canonical English sentence -> Chinese."""
    table = {part.normal: NORMAL_PARTS_ZH[part.name] for part in PARTS if part.normal and part.name in NORMAL_PARTS_ZH}
    for region in REGIONS:
        for text, chinese in zip(region.normal, REGION_NORMAL_ZH[region.name], strict=False):
            table[sentence(text)] = chinese
        table[filling(region.name, CONCEPT_NAMES)] = filling(region.name, CONCEPT_NAMES, "zh")
    for part in PARTS:
        if part.name in PART_NOUNS_ZH and part.noun:
            table[no_abnormality_of(part.name)] = no_abnormality_of(part.name, language="zh")
            table[no_abnormality_of(part.name, ("acute",))] = f"{PART_NOUNS_ZH[part.name]}未见急性异常。"
    table[NO_ABNORMALITY["en"]] = NO_ABNORMALITY["zh"]
    return table


@cache
def _nouns() -> dict[str, str]:
    return {concept.noun: NOUNS_ZH[concept.name] for concept in CONCEPTS if concept.name in NOUNS_ZH}


def _noun(phrase: str) -> str | None:
    """A noun with its qualifiers."""
    words, before = phrase.split(), ""
    while words and words[0] in _QUALIFIERS:
        before += _QUALIFIERS[words.pop(0)]
    noun = _nouns().get(" ".join(words))
    return None if noun is None else before + noun


def canonical_in_chinese(text: str) -> str | None:
    """A canonical sentence in Chinese; None where it is none.

    >>> canonical_in_chinese("There is no pneumothorax or focal consolidation.")
    '未见气胸及局灶性实变。'
    """
    known = _sentences().get(text)
    found = _NEGATIVE.match(text)
    if known is not None or found is None:
        return known
    nouns = [_noun(phrase) for phrase in re.split(r", | or ", found[1])]
    given = [one for one in nouns if one is not None]
    return negatives(given, "zh") if len(given) == len(nouns) else None


def in_chinese(report: NormalizedReport, translate: Callable[[str], str] | None = None) -> NormalizedReport:
    """The same report in Chinese, statement by statement.

    Args:
        report: an English one.
        translate: gets what the tables do not cover: a statement that kept its words, or an impression.

    Raises:
        ValueError: it is not in English, or there is no translator and something is not covered.
    """
    if report.language != "en":
        raise ValueError(f"the report is in {report.language!r} already; only 'en' is rendered in Chinese")
    missing = 0

    def render(text: str) -> str:
        nonlocal missing
        known = canonical_in_chinese(text)
        if known is None and translate is not None:
            return translate(text)
        missing += known is None
        return known or text

    statements = tuple(replace(one, text=render(one.text)) for one in report.statements)
    impression = render(report.impression)
    if missing:
        raise ValueError(f"{missing} texts of the report are in their own words and in no Chinese table: give a translator")
    return replace(report, statements=statements, impression=impression, language="zh")
