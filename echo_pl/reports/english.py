"""Reads English sentences: which findings are there, denied or in doubt, on which side, and which parts are normal.

Phrases come from the tables of ``concepts``, ``anatomy`` and ``cues``. A denial reaches forward to the end of its enumeration, a
part and a change of it ("the heart ... enlarged") make a finding together. Knows one sentence at a time and no report.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from echo_pl.reports.anatomy import ANATOMY, BECOMES, PAIRS
from echo_pl.reports.concepts import BY_NAME, is_device
from echo_pl.reports.cues import (
    BROAD_PARTS,
    EXPANDED,
    FILLERS,
    NORMAL_PARTS,
    QUALIFIERS,
    SIZES,
    ZONES,
    Role,
    Term,
    english_lexicon,
)
from echo_pl.reports.lexicon import Token, tokenize
from echo_pl.reports.mention import Analysis, Mention, NormalPart, Status
from echo_pl.reports.report import OTHER
from echo_pl.reports.scope import Item, attach, carry, items_of, places_of

_LEXICON = english_lexicon()
_ABBREVIATION = re.compile(r"\b(?:dr|mr|mrs|ms|vs|approx|no|st|fig|e\.g|i\.e|a\.m|p\.m)\.$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.?!]+(?=\s|$|[A-Z])|\n\s*\n|;(?=\s)")
_DIVIDING = (Role.JOINT, Role.BREAK, Role.DENY)
_BEFORE = (*_DIVIDING, Role.FINDING, Role.DOUBT)
_EXPANDING = frozenset({"lungs", "lung_volume"})
_NARROWING = frozenset({"left", "right", "cervical", "lumbar", "top", "high", "near", *ZONES})
_NARROWER = frozenset({"injury", "trauma", "irregularity"})
"""Less than an abnormality: to deny one is not to deny the other."""
_CACHED = 65_536
"""Sentences kept in memory with their analysis: reports repeat each other."""


def split_sentences(text: str) -> list[str]:
    """Cut at full stops that end a sentence, at semicolons and at empty lines; numbers and abbreviations are left whole."""
    sentences, start = [], 0
    for mark in _SENTENCE_END.finditer(text):
        piece = text[start : mark.end()]
        if mark[0] == "." and (_ABBREVIATION.search(piece) or re.match(r"\s*\d{1,2}\.$", piece)):
            continue
        sentences.append(piece)
        start = mark.end()
    sentences.append(text[start:])
    return [piece for one in sentences if (piece := one.strip(" \t\n.;")) and re.search(r"\w", piece)]


class EnglishReader:
    """Reads sentences of a chest report in English."""

    def split(self, text: str) -> list[str]:
        """Cut a text into sentences."""
        return split_sentences(text)

    def read(self, sentence: str) -> Analysis:
        """Say what a sentence says; repeated sentences are looked up."""
        return _read(sentence)


@lru_cache(maxsize=_CACHED)
def _read(sentence: str) -> Analysis:
    tokens = tokenize(sentence)
    items = items_of(_LEXICON.match(tokens))
    carry(items, tokens)
    attach(items, tokens)
    places = places_of(items, tokens)
    mentions: list[Mention] = []
    normals: list[NormalPart] = []
    changed: list[tuple[str, int]] = []
    denies_all = False
    for item in items:
        role, status = item.term.role, item.status
        sides, zones = (tuple(sorted(one)) for one in places.get(item.chunk, (set(), set())))
        start, end = tokens[item.first].start, tokens[item.last - 1].end
        if role is Role.FINDING:
            name, region = _resolve(item, items, tokens)
            noun = _denied_as(item, items, tokens, sentence, name, bool(zones)) if item.denied else ""
            mentions.append(Mention(name, status, sides, zones, region, start, end, False, noun))
        elif role is Role.CHANGE:
            for part in _single(item.parts):
                name = PAIRS.get((part, item.term.value), "")
                if not name and not item.denied and ANATOMY[part].region != OTHER:
                    changed.append((ANATOMY[part].region, start))
                if name:
                    noun = " ".join((*_qualifiers(item, items, tokens), BY_NAME[name].noun))
                    mentions.append(Mention(name, status, sides, zones, BY_NAME[name].region, start, end, False, noun))
        elif role is Role.GENERIC and not item.denied:
            changed += [(ANATOMY[part].region, start) for part in _single(item.parts) if ANATOMY[part].region != OTHER]
        elif (role is Role.NORMAL and not item.denied) or (role is Role.GENERIC and item.denied):
            whole = all(ANATOMY[part].region == OTHER for part in item.parts)
            denies_all |= whole and (role is Role.GENERIC or bool(item.parts))
            narrowed = _qualifiers(item, items, tokens)
            for part in _single(item.parts):
                if part not in NORMAL_PARTS.get(item.term.value, (part,)):
                    continue
                if item.term.value == EXPANDED:
                    if part not in _EXPANDING:
                        continue
                    part = "expansion"
                anatomy = ANATOMY[part]
                if anatomy.region == OTHER:
                    continue
                normals.append(NormalPart(part, anatomy.region, sides, start, end, role is Role.GENERIC, narrowed))
                for name in anatomy.denies:
                    mentions.append(Mention(name, Status.NEGATIVE, sides, zones, anatomy.region, start, end, True))
    parts = tuple(item.term.value for item in items if item.term.role is Role.PART)
    joints = tuple((tokens[i.first].start, tokens[i.last - 1].end) for i in items if i.term.role in _DIVIDING)
    unknown = _unknown(items, tokens)
    return Analysis(tuple(mentions), tuple(normals), parts, denies_all and not normals, joints, tuple(changed), unknown)


def _begin(item: Item, items: Sequence[Item]) -> int:
    """First token of the member of an enumeration that a phrase stands in; a comma between qualifiers begins no member."""
    begin, named = 0, False
    for one in items:
        if one.first >= item.first:
            break
        if one.term.role in _BEFORE and (named or one.term.role is not Role.JOINT):
            begin, named = one.last, one.term.role is Role.FINDING
        elif one.term.role in (Role.PART, Role.CHANGE, Role.GENERIC, Role.NORMAL):
            named = True
    return begin


def _qualifiers(item: Item, items: Sequence[Item], tokens: Sequence[Token]) -> tuple[str, ...]:
    """Words that narrow a denial; those of size that the first member has are of all."""
    begin = _begin(item, items)
    own = tuple(token.stem for token in tokens[begin : item.first] if token.stem in QUALIFIERS)
    if own or not item.denied:
        return own
    denial = max((one.last for one in items if one.term.role is Role.DENY and one.last <= item.first), default=begin)
    first = next((one.last for one in items if one.first >= denial and one.term.role in (Role.FINDING, Role.PART)), denial)
    return tuple(token.stem for token in tokens[denial : min(first, begin)] if token.stem in SIZES)


def _denied_as(item: Item, items: Sequence[Item], tokens: Sequence[Token], sentence: str, name: str, placed: bool) -> str:
    if is_device(name):
        return ""  # "the left chest tube has been removed" is more than that there is none
    begin = _begin(item, items)
    parts = [one for one in items if one.term.role is Role.PART and one.chunk == item.chunk and one.first >= begin]
    narrow = [one for one in parts if placed or one.term.value not in BROAD_PARTS]
    if any(one.first > item.first for one in narrow):
        return ""
    if not narrow:
        return " ".join((*_qualifiers(item, items, tokens), BY_NAME[name].noun))
    first = begin
    while first < item.first and tokens[first].stem in FILLERS:
        first += 1
    last = tokens[item.last - 1]
    return (sentence[tokens[first].start : last.start] + last.stem).lower()


def _unknown(items: Sequence[Item], tokens: Sequence[Token]) -> tuple[tuple[int, int], ...]:
    """Tokens that a canonical sentence would lose: sides, numbers, and words that are in no table."""
    covered = {
        i
        for one in items
        for i in range(one.first, one.last)
        if one.term.role not in (Role.NEUTRAL, Role.CHANGE) or (one.term.role is Role.CHANGE and one.parts)
    }
    named = {i for one in items if one.term.role is Role.PART and one.term.value != "lungs" for i in range(one.first, one.last)}
    fine = FILLERS | QUALIFIERS
    said = {part for one in items for part in one.parts}
    busy = {one.chunk for one in items if one.term.role is Role.FINDING}
    covered -= {
        i
        for one in items
        if (one.term.role is Role.NORMAL and not one.parts and one.chunk not in busy)
        or (one.term.role is Role.PART and one.term.value not in said and one.chunk not in busy)
        for i in range(one.first, one.last)
    }
    return tuple(
        (token.start, token.end)
        for i, token in enumerate(tokens)
        if token.stem in _NARROWER
        or (token.stem in _NARROWING and not (i in named and token.stem in ZONES))
        or (i not in covered and token.stem not in fine)
    )


def _single(parts: Sequence[str]) -> list[str]:
    """Parts, with those in place of a word that names several at once."""
    return [one for part in parts for one in (ANATOMY[part].parts or (part,))]


def _resolve(item: Item, items: Sequence[Item], tokens: Sequence[Token]) -> tuple[str, str]:
    """Name and region of a finding: some depend on the part it is found in, the nearest of its clause."""
    concept = BY_NAME[item.term.value]
    if concept.name == "calcification" and any(
        one.term == Term(Role.FINDING, "granuloma") and one.chunk == item.chunk for one in items
    ):
        concept = BY_NAME["granuloma"]  # "calcified left granuloma" is one thing
    near = sorted(
        (min(abs(one.first - item.last), abs(item.first - one.last)), one.term.value)
        for one in items
        if one.term.role is Role.PART and one.clause == item.clause
    )
    for distance, part in near:
        name = BECOMES.get((concept.name, part))
        if name and distance <= 6:
            return name, BY_NAME[name].region
    if concept.moves:
        over = {one.term.value for one in items if one.term.role is Role.PART and _projected(one, item, tokens)}
        for _, part in near:
            if part not in over and ANATOMY[part].region != OTHER and part != "thorax" and part != "node":
                return concept.name, ANATOMY[part].region
    return concept.name, concept.region


def _projected(part: Item, finding: Item, tokens: Sequence[Token]) -> bool:
    """Whether a finding only lies in front of or behind a part: "nodule projecting over the fifth rib"."""
    between = tokens[finding.last : part.first]
    return any(token.stem.startswith(("over", "project", "superimpos")) for token in between)
