"""Reads English sentences: which findings are there, denied or in doubt, on which side, and which parts are normal.

Phrases come from the tables of ``concepts``, ``anatomy`` and ``cues``. A denial reaches forward to the end of its enumeration, a
part and a change of it ("the heart ... enlarged") make a finding together. Knows one sentence at a time and no report.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from echo_pl.data.reports.anatomy import ANATOMY, BECOMES, PAIRS
from echo_pl.data.reports.concepts import BY_NAME
from echo_pl.data.reports.cues import BOTH_WAYS, BROAD_PARTS, EXPANDED, FILLERS, QUALIFIERS, RESTARTS, SIDES, ZONES, Role, Term, english_lexicon
from echo_pl.data.reports.lexicon import Match, Token, tokenize
from echo_pl.data.reports.mention import Analysis, Mention, NormalPart, Status
from echo_pl.data.reports.report import OTHER

_LEXICON = english_lexicon()
_ABBREVIATION = re.compile(r"\b(?:dr|mr|mrs|ms|vs|approx|no|st|fig|e\.g|i\.e|a\.m|p\.m)\.$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.?!]+(?=\s|$|[A-Z])|\n\s*\n|;(?=\s)")
_LOCATING = frozenset(
    "in within of at over overlying near along to from on above below under adjacent involving through throughout projecting about "
    "around into behind between across toward towards underlying approximating".split()
)
_DIVIDING = (Role.JOINT, Role.BREAK, Role.DENY)
_BEFORE = (*_DIVIDING, Role.FINDING, Role.DOUBT)
_EXPANDING = frozenset({"lungs", "lung_volume"})
_COPULAS = frozenset("is are was were appear remain be to".split())
_NARROWING = frozenset({"left", "right", "cervical", "lumbar", *ZONES})
_SIDELESS_PARTS = frozenset({"heart", "vein"})
_ADJECTIVES = frozenset({"calcification", "atherosclerosis"})
"""Findings that stand before the part they are found in: "tortuous, calcified aorta"."""
_CACHED = 65_536
"""Sentences kept in memory with their analysis: reports repeat each other."""


@dataclass(slots=True)
class _Item:
    """A phrase in a sentence, and what reaches it."""

    first: int
    last: int
    term: Term
    denied: bool = False
    doubted: bool = False
    clause: int = 0
    """Counts what a break divides."""
    chunk: int = 0
    """Counts what a break or a joint divides."""
    parts: list[str] = field(default_factory=list)
    """Of a change: the parts it is said of."""


def split_sentences(text: str) -> list[str]:
    """Cut at full stops that end a sentence, at semicolons and at empty lines; numbers and abbreviations are left whole."""
    sentences, start = [], 0
    for mark in _SENTENCE_END.finditer(text):
        piece = text[start : mark.end()]
        if mark[0] == "." and (_ABBREVIATION.search(piece) or re.search(r"(?:^|\s)\d{1,2}\.$", piece)):
            continue
        sentences.append(piece)
        start = mark.end()
    sentences.append(text[start:])
    return [piece for one in sentences if (piece := one.strip(" \t\n.;")) and re.search(r"\w", piece)]


def _items(matches: Sequence[Match[Term]]) -> list[_Item]:
    return [_Item(match.first, match.last, match.entry) for match in matches]


def _goes_on(items: Sequence[_Item], place: int, tokens: Sequence[Token]) -> bool:
    """Whether an enumeration that is denied goes on after this joint."""
    following = items[place].last
    while following < len(tokens) and tokens[following].stem in {",", "and", "or"}:
        following += 1
    if following >= len(tokens):
        return True
    word = tokens[following].stem
    if word in {"the", "there"}:
        return False
    if tokens[items[place].first].stem in {"or", "/"}:
        return True
    for later in items[place + 1 :]:
        if later.term.role in (Role.BREAK, Role.DENY):
            break
        if later.term.role is Role.JOINT and tokens[later.first].stem == "or":
            return True
    return word not in RESTARTS


def _reach(items: Sequence[_Item], tokens: Sequence[Token]) -> None:
    """Carry denials and doubts to what they are said of."""
    denied = doubted = False
    clause = chunk = 0
    for place, item in enumerate(items):
        role = item.term.role
        if role is Role.BREAK:
            clause, chunk = clause + 1, chunk + 1
            denied = doubted = False
        elif role is Role.JOINT:
            chunk += 1
            if (denied or doubted) and not _goes_on(items, place, tokens):
                denied = doubted = False
        elif role is Role.DENY:
            denied, doubted = True, False
        elif role is Role.DOUBT:
            doubted = True
            if item.term.value == BOTH_WAYS:
                _doubt_before(items, place, clause)
        elif role is Role.NORMAL and place and items[place - 1].term.role is Role.FINDING and _copula(tokens, items[place - 1], item):
            items[place - 1].denied = True  # "engorgement is within normal limits"
        elif role in (Role.DENIED, Role.DOUBTED):
            for earlier in items[:place]:
                if earlier.clause == clause:
                    earlier.denied |= role is Role.DENIED
                    earlier.doubted |= role is Role.DOUBTED
        item.denied, item.doubted, item.clause, item.chunk = denied, doubted, clause, chunk


def _copula(tokens: Sequence[Token], left: _Item, right: _Item) -> bool:
    """Whether only "is" or "appears" stands between two phrases."""
    between = [token.stem for token in tokens[left.last : right.first]]
    return bool(between) and all(word in _COPULAS for word in between)


def _doubt_before(items: Sequence[_Item], place: int, clause: int) -> None:
    """A versus B: the finding right before is in doubt as well."""
    for earlier in reversed(items[:place]):
        if earlier.term.role is Role.FINDING and earlier.clause == clause:
            earlier.doubted = True
            return


def _located(item: _Item, items: Sequence[_Item], tokens: Sequence[Token]) -> bool:
    """Whether a part only says where a finding before it is: "nodule in the left lung"."""
    before = [one for one in items if one.last <= item.first and one.clause == item.clause]
    if not any(one.term.role is Role.FINDING for one in before):
        return False
    window = tokens[max(item.first - 5, 0) : item.first]
    return any(token.stem in _LOCATING for token in window)


def _adjective(items: Sequence[_Item], place: int) -> bool:
    """Whether a finding that stands before its part is here."""
    return place < len(items) and items[place].term.role is Role.FINDING and items[place].term.value in _ADJECTIVES


def _predicates(items: Sequence[_Item], tokens: Sequence[Token]) -> None:
    """Say of every change, normality and abnormality which parts it is said of."""
    group: list[str] = []  # parts that wait for what is said of them, or of which something was said
    said = False  # whether something was said of the group
    waiting: list[_Item] = []  # said before its part: "enlarged heart"
    for place, item in enumerate(items):
        role = item.term.role
        if role is Role.BREAK:
            group, said, waiting = [], False, []
        elif role is Role.JOINT and tokens[item.first].stem == ",":
            if not _adjective(items, place + 1):
                waiting = []
        elif role is Role.FINDING:
            if group and not said and item.first == items[place - 1].last and items[place - 1].term.role is Role.PART:
                group = group[:-1]  # "pulmonary nodule"
            if item.term.value not in _ADJECTIVES:
                waiting = []
        elif role is Role.PART:
            if waiting:
                for one in waiting:
                    one.parts.append(item.term.value)
                group, said = [item.term.value], True
            elif not _located(item, items, tokens):
                group, said = ([] if said else group) + [item.term.value], False
        elif role in (Role.CHANGE, Role.NORMAL, Role.GENERIC):
            following = items[place + 1] if place + 1 < len(items) else None
            prenominal = (
                following is not None
                and (following.term.role is Role.PART or (_adjective(items, place + 1) and not group))
                and following.first <= item.last + (2 if role is Role.CHANGE else 0)
                and (not group or said or (place > 0 and items[place - 1].term.role in (Role.JOINT, Role.DENY)))
            )
            if group and not prenominal and (not said or not waiting):
                item.parts.extend(group)
                said = True
            else:
                if waiting and waiting[0].parts:
                    waiting = []
                waiting.append(item)
                if prenominal:
                    group = []


def _status(item: _Item) -> Status:
    if item.denied:
        return Status.NEGATIVE
    return Status.UNCERTAIN if item.doubted else Status.POSITIVE


def _places(items: Sequence[_Item], tokens: Sequence[Token]) -> dict[int, tuple[set[str], set[str]]]:
    """Sides and zones by chunk; those of a chunk without a finding go to the one before it, or else after it."""
    silent = {i for one in items if one.term.role is Role.PART and one.term.value in _SIDELESS_PARTS for i in range(one.first, one.last)}
    bounds = [(one.first, one.chunk) for one in items]
    by_chunk: dict[int, tuple[set[str], set[str]]] = {}
    pointer, chunk = 0, 0
    for number, token in enumerate(tokens):
        while pointer < len(bounds) and bounds[pointer][0] <= number:
            chunk = bounds[pointer][1]
            pointer += 1
        sides, zone = SIDES.get(token.stem, ()), ZONES.get(token.stem)
        if number not in silent and (sides or zone):
            found = by_chunk.setdefault(chunk, (set(), set()))
            found[0].update(sides)
            if zone:
                found[1].add(zone)
    spoken = {
        one.chunk
        for one in items
        if one.term.role is Role.FINDING or (one.term.role in (Role.CHANGE, Role.NORMAL, Role.GENERIC) and one.parts)
    }
    clauses = {one.chunk: one.clause for one in items}
    for number in [one for one in by_chunk if one not in spoken]:
        near = [one for one in spoken if clauses.get(one) == clauses.get(number)]
        earlier = [one for one in near if one < number]
        later = [one for one in near if one > number]
        if earlier or later:
            target = by_chunk.setdefault(max(earlier) if earlier else min(later), (set(), set()))
            target[0].update(by_chunk[number][0])
            target[1].update(by_chunk[number][1])
    return by_chunk


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
    items = _items(_LEXICON.match(tokens))
    _reach(items, tokens)
    _predicates(items, tokens)
    places = _places(items, tokens)
    mentions: list[Mention] = []
    normals: list[NormalPart] = []
    denies_all = False
    for item in items:
        role, status = item.term.role, _status(item)
        sides, zones = (tuple(sorted(one)) for one in places.get(item.chunk, (set(), set())))
        start, end = tokens[item.first].start, tokens[item.last - 1].end
        if role is Role.FINDING:
            name, region = _resolve(item, items)
            noun = _denied_as(item, items, tokens, sentence, name, bool(zones)) if item.denied else ""
            mentions.append(Mention(name, status, sides, zones, region, start, end, False, noun))
        elif role is Role.CHANGE:
            for part in _single(item.parts):
                name = PAIRS.get((part, item.term.value), "")
                if name:
                    noun = " ".join((*_qualifiers(item, items, tokens), BY_NAME[name].noun))
                    mentions.append(Mention(name, status, sides, zones, BY_NAME[name].region, start, end, False, noun))
        elif (role is Role.NORMAL and not item.denied) or (role is Role.GENERIC and item.denied):
            denies_all |= all(ANATOMY[part].region == OTHER for part in item.parts)
            narrowed = _qualifiers(item, items, tokens)
            for part in _single(item.parts):
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
    return Analysis(tuple(mentions), tuple(normals), parts, denies_all and not normals, joints, unknown)


def _begin(item: _Item, items: Sequence[_Item]) -> int:
    """First token of the member of an enumeration that a phrase stands in."""
    return max((one.last for one in items if one.last <= item.first and one.term.role in _BEFORE), default=0)


def _qualifiers(item: _Item, items: Sequence[_Item], tokens: Sequence[Token]) -> tuple[str, ...]:
    return tuple(token.stem for token in tokens[_begin(item, items) : item.first] if token.stem in QUALIFIERS)


def _denied_as(item: _Item, items: Sequence[_Item], tokens: Sequence[Token], sentence: str, name: str, placed: bool) -> str:
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


def _unknown(items: Sequence[_Item], tokens: Sequence[Token]) -> tuple[tuple[int, int], ...]:
    """Tokens that a canonical sentence would lose: sides, numbers, and words that are in no table."""
    covered = {
        i
        for one in items
        for i in range(one.first, one.last)
        if one.term.role not in (Role.NEUTRAL, Role.CHANGE) or one.parts or one.denied
    }
    fine = FILLERS | QUALIFIERS
    return tuple(
        (token.start, token.end)
        for i, token in enumerate(tokens)
        if token.stem in _NARROWING or (i not in covered and token.stem not in fine)
    )


def _single(parts: Sequence[str]) -> list[str]:
    """Parts, with those in place of a word that names several at once."""
    return [one for part in parts for one in (ANATOMY[part].parts or (part,))]


def _resolve(item: _Item, items: Sequence[_Item]) -> tuple[str, str]:
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
        for _, part in near:
            if ANATOMY[part].region != OTHER and part != "thorax" and part != "node":
                return concept.name, ANATOMY[part].region
    return concept.name, concept.region
