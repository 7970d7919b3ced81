"""Canonical sentences, in English and Chinese: negatives, normal parts, fillings.

A filling is the sentence for a region that the report does not mention; nothing in the report
contradicts it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache
from typing import Final

from echo_pl.reports.regions import REGIONS
from echo_pl.reports.response import Language
from echo_pl.reports.tables import check_names, read_table, words_of
from echo_pl.reports.vocabulary import CONCEPTS, PARTS

NO_ABNORMALITY: Final[dict[Language, str]] = {
    "en": "No acute cardiopulmonary abnormality.",
    "zh": "心肺未见明显异常。",
}
"""Impression of a report that has none and no finding."""
_SINGULAR = frozenset({"thorax", "heart"})
_REGIONS: Final = {region.name: region for region in REGIONS}
_NEGATIVE = re.compile(r"^There is no (.+)\.$")


def _contradicting(region: str) -> tuple[tuple[int, frozenset[str]], ...]:
    """Return the fillings of a region: number of its sentence, findings that contradict it."""
    fillings = []
    for one in _REGIONS[region].fillings:
        names = words_of(one["unless"])
        check_names(f"regions.yaml, {region}", names, CONCEPTS)
        whole = {name for name, concept in CONCEPTS.items() if concept.region == one.get("unless_any_of_region")}
        fillings.append((one["sentence"], names | whole))
    return tuple(fillings)


_FILLINGS: Final = {name: _contradicting(name) for name in _REGIONS}


def sentence(text: str) -> str:
    """Return the text with a capital and a full stop.

    >>> sentence("there is no fracture")
    'There is no fracture.'
    """
    text = text.strip().strip(",;:").strip()
    if not text:
        return ""
    if not text[0].isascii():
        return text if text.endswith(("。", "！", "？")) else text + "。"
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def normal_part(part: str, language: Language = "en") -> str:
    """Return the sentence that a part is normal; empty if there is none."""
    return PARTS[part].normal_zh if language == "zh" else PARTS[part].normal


def no_abnormality_of(part: str, qualifiers: Sequence[str] = (), language: Language = "en") -> str:
    """Return the sentence that a part has no abnormality, narrowed by the qualifiers ("acute")."""
    if language == "zh":
        return f"{PARTS[part].noun_zh}未见异常。" if PARTS[part].noun_zh else ""
    return sentence(" ".join(("there is no", *qualifiers, PARTS[part].noun, "abnormality")))


def negatives(nouns: Sequence[str], language: Language = "en") -> str:
    """Return one sentence that denies all nouns; a qualifier narrows the nouns after it.

    >>> negatives(["large pleural effusion", "free air"])
    'There is no free air or large pleural effusion.'
    """
    ordered = sorted(dict.fromkeys(nouns), key=lambda noun: noun.count(" "))
    if language == "zh":
        return sentence("未见" + "、".join(ordered[:-1]) + ("及" if ordered[:-1] else "") + ordered[-1])
    last = f"{', '.join(ordered[:-1])} or {ordered[-1]}" if len(ordered) > 1 else ordered[-1]
    return sentence(f"there is no {last}")


def noun(concept: str, language: Language = "en") -> str:
    """Return the noun of a canonical negative."""
    return CONCEPTS[concept].noun_zh if language == "zh" else CONCEPTS[concept].noun


def filling(region: str, present: Collection[str], language: Language = "en") -> str:
    """Return the sentence for a region that the report does not mention.

    Args:
        region: its name.
        present: findings anywhere in the report, certain or not.
        language: of the sentence.
    """
    table = _REGIONS[region]
    for number, against in _FILLINGS[region]:
        if not against.intersection(present):
            return sentence(table.normal_zh[number] if language == "zh" else table.normal[number])
    if language == "zh":
        return f"{table.title_zh}无进一步描述。"
    return f"The {table.title} {'is' if region in _SINGULAR else 'are'} not described further."


@cache
def _translations() -> dict[str, str]:
    """Return all canonical English sentences but negatives, with their translation."""
    table = {part.normal: part.normal_zh for part in PARTS.values() if part.normal and part.normal_zh}
    for region in REGIONS:
        table.update((sentence(text), chinese) for text, chinese in zip(region.normal, region.normal_zh, strict=False))
        table[filling(region.name, CONCEPTS)] = filling(region.name, CONCEPTS, "zh")
    for part in PARTS.values():
        if part.noun_zh and part.noun:
            table[no_abnormality_of(part.name)] = no_abnormality_of(part.name, language="zh")
            table[no_abnormality_of(part.name, ("acute",))] = f"{part.noun_zh}未见急性异常。"
    table[NO_ABNORMALITY["en"]] = NO_ABNORMALITY["zh"]
    return table


@cache
def _nouns() -> dict[str, str]:
    return {concept.noun: concept.noun_zh for concept in CONCEPTS.values()}


def _noun_in_chinese(phrase: str) -> str | None:
    """Translate a noun with its qualifiers."""
    qualifiers = read_table("cues")["chinese"]["qualifiers"]
    words, before = phrase.split(), ""
    while words and words[0] in qualifiers:
        before += qualifiers[words.pop(0)]
    found = _nouns().get(" ".join(words))
    return None if found is None else before + found


def canonical_in_chinese(text: str) -> str | None:
    """Translate a canonical sentence; None for any other sentence.

    >>> canonical_in_chinese("There is no pneumothorax or focal consolidation.")
    '未见气胸及局灶性实变。'
    """
    translation = _translations().get(text)
    found = _NEGATIVE.match(text)
    if translation is not None or found is None:
        return translation
    nouns = [_noun_in_chinese(phrase) for phrase in re.split(r", | or ", found[1])]
    translated = [one for one in nouns if one is not None]
    return negatives(translated, "zh") if len(translated) == len(nouns) else None
