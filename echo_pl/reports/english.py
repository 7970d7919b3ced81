"""Analysis of an English sentence: its findings with status and place, its normal parts.

Phrases come from :mod:`~echo_pl.reports.vocabulary` and :mod:`~echo_pl.reports.cues`. A negation
acts on the rest of its list; a part and a change of it ("the heart ... enlarged") make a finding
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from echo_pl.reports.cues import (
    BROAD_PARTS,
    EXPANDED,
    FILLERS,
    NARROWING,
    NORMAL_PARTS,
    QUALIFIERS,
    SIZES,
    WEAKER_THAN_ABNORMALITY,
    ZONES,
    Role,
    Term,
    english_lexicon,
)
from echo_pl.reports.lexicon import Token, tokenize
from echo_pl.reports.mention import Analysis, Mention, NormalPart, Reader, Status
from echo_pl.reports.regions import OTHER
from echo_pl.reports.scope import Item, attach_modifiers, places_of, propagate_negation
from echo_pl.reports.sentences import split_sentences
from echo_pl.reports.vocabulary import BECOMES, CONCEPTS, DEVICES, PAIRS, PARTS, single_parts

_LEXICON = english_lexicon()
_DIVIDING = (Role.CONJUNCTION, Role.TERMINATOR, Role.NEGATION)
_BEFORE = (*_DIVIDING, Role.FINDING, Role.DOUBT)
_CACHED = 65_536
"""Most analyses kept in memory: reports repeat each other's sentences."""


@lru_cache(maxsize=_CACHED)
def _read(sentence: str) -> Analysis:
    tokens = tokenize(sentence)
    items = [Item(match.first, match.last, match.entry) for match in _LEXICON.match(tokens)]
    propagate_negation(items, tokens)
    attach_modifiers(items, tokens)
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
            for part in single_parts(item.parts):
                name = PAIRS.get((part, item.term.value), "")
                if not name and not item.denied and PARTS[part].region != OTHER:
                    changed.append((PARTS[part].region, start))
                if name:
                    noun = " ".join((*_qualifiers(item, items, tokens), CONCEPTS[name].noun))
                    mentions.append(Mention(name, status, sides, zones, CONCEPTS[name].region, start, end, False, noun))
        elif role is Role.ABNORMALITY and not item.denied:
            changed += [(PARTS[part].region, start) for part in single_parts(item.parts) if PARTS[part].region != OTHER]
        elif (role is Role.NORMALITY and not item.denied) or (role is Role.ABNORMALITY and item.denied):
            whole = all(PARTS[part].region == OTHER for part in item.parts)
            denies_all |= whole and (role is Role.ABNORMALITY or bool(item.parts))
            narrowed = _qualifiers(item, items, tokens)
            for part in single_parts(item.parts):
                if part not in NORMAL_PARTS.get(item.term.value, (part,)):
                    continue
                if item.term.value == EXPANDED:
                    if part not in ("lungs", "lung_volume"):
                        continue
                    part = "expansion"
                anatomy = PARTS[part]
                if anatomy.region == OTHER:
                    continue
                normals.append(NormalPart(part, anatomy.region, sides, start, end, role is Role.ABNORMALITY, narrowed))
                for name in anatomy.denies:
                    mentions.append(Mention(name, Status.NEGATIVE, sides, zones, anatomy.region, start, end, True))
    parts = tuple(item.term.value for item in items if item.term.role is Role.PART)
    joints = tuple((tokens[i.first].start, tokens[i.last - 1].end) for i in items if i.term.role in _DIVIDING)
    unknown = _unknown(items, tokens)
    return Analysis(tuple(mentions), tuple(normals), parts, denies_all and not normals, joints, tuple(changed), unknown)


ENGLISH = Reader(split_sentences, _read)


def _begin(item: Item, items: Sequence[Item]) -> int:
    """Return the first token of a phrase's list member; a comma between qualifiers begins none."""
    begin, named = 0, False
    for one in items:
        if one.first >= item.first:
            break
        if one.term.role in _BEFORE and (named or one.term.role is not Role.CONJUNCTION):
            begin, named = one.last, one.term.role is Role.FINDING
        elif one.term.role in (Role.PART, Role.CHANGE, Role.ABNORMALITY, Role.NORMALITY):
            named = True
    return begin


def _qualifiers(item: Item, items: Sequence[Item], tokens: Sequence[Token]) -> tuple[str, ...]:
    """Return the words that narrow a negation; the first member's size applies to all."""
    begin = _begin(item, items)
    own = tuple(token.stem for token in tokens[begin : item.first] if token.stem in QUALIFIERS)
    if own or not item.denied:
        return own
    denial = max((one.last for one in items if one.term.role is Role.NEGATION and one.last <= item.first), default=begin)
    first = next((one.last for one in items if one.first >= denial and one.term.role in (Role.FINDING, Role.PART)), denial)
    return tuple(token.stem for token in tokens[denial : min(first, begin)] if token.stem in SIZES)


def _denied_as(item: Item, items: Sequence[Item], tokens: Sequence[Token], sentence: str, name: str, placed: bool) -> str:
    if name in DEVICES:
        return ""  # "the left chest tube has been removed" states more than its absence
    begin = _begin(item, items)
    parts = [one for one in items if one.term.role is Role.PART and one.chunk == item.chunk and one.first >= begin]
    narrow = [one for one in parts if placed or one.term.value not in BROAD_PARTS]
    if any(one.first > item.first for one in narrow):
        return ""
    if not narrow:
        return " ".join((*_qualifiers(item, items, tokens), CONCEPTS[name].noun))
    first = begin
    while first < item.first and tokens[first].stem in FILLERS:
        first += 1
    last = tokens[item.last - 1]
    return (sentence[tokens[first].start : last.start] + last.stem).lower()


def _unknown(items: Sequence[Item], tokens: Sequence[Token]) -> tuple[tuple[int, int], ...]:
    """Return the tokens that a canonical sentence would lose: sides, numbers, unknown words."""
    covered = {
        i
        for one in items
        for i in range(one.first, one.last)
        if one.term.role not in (Role.PSEUDO_TRIGGER, Role.CHANGE) or (one.term.role is Role.CHANGE and one.parts)
    }
    named = {i for one in items if one.term.role is Role.PART and one.term.value != "lungs" for i in range(one.first, one.last)}
    fine = FILLERS | QUALIFIERS
    described = {part for one in items for part in one.parts}
    busy = {one.chunk for one in items if one.term.role is Role.FINDING}
    covered -= {
        i
        for one in items
        if (one.term.role is Role.NORMALITY and not one.parts and one.chunk not in busy)
        or (one.term.role is Role.PART and one.term.value not in described and one.chunk not in busy)
        for i in range(one.first, one.last)
    }
    return tuple(
        (token.start, token.end)
        for i, token in enumerate(tokens)
        if token.stem in WEAKER_THAN_ABNORMALITY
        or (token.stem in NARROWING and not (i in named and token.stem in ZONES))
        or (i not in covered and token.stem not in fine)
    )


def _resolve(item: Item, items: Sequence[Item], tokens: Sequence[Token]) -> tuple[str, str]:
    """Return name and region of a finding; some depend on the nearest part of its clause."""
    concept = CONCEPTS[item.term.value]
    if concept.name == "calcification" and any(
        one.term == Term(Role.FINDING, "granuloma") and one.chunk == item.chunk for one in items
    ):
        concept = CONCEPTS["granuloma"]  # "calcified left granuloma" is one finding
    near = sorted(
        (min(abs(one.first - item.last), abs(item.first - one.last)), one.term.value)
        for one in items
        if one.term.role is Role.PART and one.clause == item.clause
    )
    for distance, part in near:
        name = BECOMES.get((concept.name, part))
        if name and distance <= 6:
            return name, CONCEPTS[name].region
    if concept.moves:
        over = {one.term.value for one in items if one.term.role is Role.PART and _projected(one, item, tokens)}
        for _, part in near:
            if part not in over and PARTS[part].region != OTHER and part != "thorax" and part != "node":
                return concept.name, PARTS[part].region
    return concept.name, concept.region


def _projected(part: Item, finding: Item, tokens: Sequence[Token]) -> bool:
    """Return True if a finding only projects over a part: "nodule over the fifth rib"."""
    between = tokens[finding.last : part.first]
    return any(token.stem.startswith(("over", "project", "superimpos")) for token in between)
