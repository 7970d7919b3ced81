"""Scope in an English sentence: of negations and doubts, of modifiers, of sides and zones.

Works on the phrases of one sentence, in order. The terms are ConText's; see
:mod:`echo_pl.reports.cues`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from echo_pl.reports.cues import (
    ADJECTIVE_FINDINGS,
    BOTH_WAYS,
    COPULAS,
    LIMITS,
    LOCATING,
    RESTARTS,
    SIDED_FINDINGS,
    SIDELESS_PARTS,
    SIDES,
    ZONES,
    Role,
    Term,
)
from echo_pl.reports.lexicon import Token
from echo_pl.reports.mention import Status

_CLOSE_JOINTS = frozenset({"and", "or", "/"})
Places = dict[int, tuple[set[str], set[str]]]
"""Chunk -> sides and zones."""


@dataclass(slots=True)
class Item:
    """A phrase in a sentence, with its status and its parts."""

    first: int
    last: int
    term: Term
    denied: bool = False
    doubted: bool = False
    clause: int = 0
    """Number of terminators before it."""
    chunk: int = 0
    """Number of terminators and conjunctions before it."""
    parts: list[str] = field(default_factory=list)
    """Parts that a change, normality or abnormality belongs to."""

    @property
    def status(self) -> Status:
        """Status that follows from negation and doubt."""
        if self.denied:
            return Status.NEGATIVE
        return Status.UNCERTAIN if self.doubted else Status.POSITIVE


def _list_continues(items: Sequence[Item], place: int, tokens: Sequence[Token]) -> bool:
    """Return True if a negated list continues after this conjunction."""
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
        if later.term.role in (Role.TERMINATOR, Role.NEGATION):
            break
        if later.term.role is Role.CONJUNCTION and tokens[later.first].stem == "or":
            return True
    return word not in RESTARTS


def propagate_negation(items: Sequence[Item], tokens: Sequence[Token]) -> None:
    """Mark the findings in the scope of each negation and each doubt."""
    denied = doubted = False
    clause = chunk = 0
    for place, item in enumerate(items):
        role = item.term.role
        if role is Role.TERMINATOR:
            clause, chunk = clause + 1, chunk + 1
            denied = doubted = False
        elif role is Role.CONJUNCTION:
            chunk += 1
            if (denied or doubted) and not _list_continues(items, place, tokens):
                denied = doubted = False
        elif role is Role.NEGATION:
            denied, doubted = True, False
        elif role is Role.DOUBT:
            doubted = True
            if item.term.value == BOTH_WAYS:
                _doubt_before(items, place, clause)
        elif (
            item.term == Term(Role.NORMALITY, LIMITS)
            and place
            and items[place - 1].term.role is Role.FINDING
            and _copula(tokens, items[place - 1], item)
        ):
            items[place - 1].denied = True  # "engorgement is within normal limits"
        elif role in (Role.NEGATION_BACKWARD, Role.DOUBT_BACKWARD):
            for earlier in items[:place]:
                if earlier.clause == clause:
                    earlier.denied |= role is Role.NEGATION_BACKWARD
                    earlier.doubted |= role is Role.DOUBT_BACKWARD
        item.denied, item.doubted, item.clause, item.chunk = denied, doubted, clause, chunk


def _copula(tokens: Sequence[Token], left: Item, right: Item) -> bool:
    """Return True if only words like "is" or "appears" separate two phrases."""
    between = [token.stem for token in tokens[left.last : right.first]]
    return bool(between) and all(word in COPULAS for word in between)


def _doubt_before(items: Sequence[Item], place: int, clause: int) -> None:
    """Mark the finding right before "versus" as uncertain."""
    for earlier in reversed(items[:place]):
        if earlier.term.role is Role.FINDING and earlier.clause == clause:
            earlier.doubted = True
            return


def _located(item: Item, items: Sequence[Item], tokens: Sequence[Token]) -> bool:
    """Return True if a part only locates a finding before it: "nodule in the left lung"."""
    before = [one for one in items if one.last <= item.first and one.clause == item.clause]
    if not any(one.term.role is Role.FINDING for one in before):
        return False
    window = tokens[max(item.first - 5, 0) : item.first]
    return any(token.stem in LOCATING for token in window)


def _adjective(items: Sequence[Item], place: int) -> bool:
    """Return True if this phrase is a finding that precedes its part."""
    return place < len(items) and items[place].term.role is Role.FINDING and items[place].term.value in ADJECTIVE_FINDINGS


def attach_modifiers(items: Sequence[Item], tokens: Sequence[Token]) -> None:
    """Assign every change, normality and abnormality to its parts."""
    group: list[str] = []  # parts before a modifier, or the parts of the last one
    described = False  # the group has a modifier
    waiting: list[Item] = []  # modifiers that precede their part: "enlarged heart"
    for place, item in enumerate(items):
        role = item.term.role
        if role is Role.TERMINATOR:
            group, described, waiting = [], False, []
        elif role is Role.CONJUNCTION and tokens[item.first].stem == ",":
            if not _adjective(items, place + 1):
                waiting = []
        elif role is Role.FINDING:
            if group and not described and item.first == items[place - 1].last and items[place - 1].term.role is Role.PART:
                group = group[:-1]  # "pulmonary nodule"
            if item.term.value not in ADJECTIVE_FINDINGS:
                waiting = []
        elif role is Role.PART:
            if waiting:
                for one in waiting:
                    one.parts.append(item.term.value)
                group, described = [item.term.value], True
            elif not _located(item, items, tokens):
                group, described = ([] if described else group) + [item.term.value], False
        elif role in (Role.CHANGE, Role.NORMALITY, Role.ABNORMALITY):
            following = items[place + 1] if place + 1 < len(items) else None
            prenominal = (
                following is not None
                and (following.term.role is Role.PART or (_adjective(items, place + 1) and not group))
                and following.first <= item.last + (2 if role is Role.CHANGE else 0)
                and (not group or described or (place > 0 and items[place - 1].term.role in (Role.CONJUNCTION, Role.NEGATION)))
            )
            if group and not prenominal and (not described or not waiting):
                item.parts.extend(group)
                described = True
            else:
                if waiting and waiting[0].parts:
                    waiting = []
                waiting.append(item)
                if prenominal:
                    group = []


def places_of(items: Sequence[Item], tokens: Sequence[Token]) -> Places:
    """Return sides and zones by chunk; a chunk without a finding gives them to a neighbour."""
    silent = {
        i for one in items if one.term.role is Role.PART and one.term.value in SIDELESS_PARTS for i in range(one.first, one.last)
    }
    bounds = [(one.first, one.chunk) for one in items]
    by_chunk: Places = {}
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
    described = {
        one.chunk
        for one in items
        if one.term.role is Role.FINDING or (one.term.role in (Role.CHANGE, Role.NORMALITY, Role.ABNORMALITY) and one.parts)
    }
    clauses = {one.chunk: one.clause for one in items}
    for number in [one for one in by_chunk if one not in described]:
        near = [one for one in described if clauses.get(one) == clauses.get(number)]
        earlier = [one for one in near if one < number]
        later = [one for one in near if one > number]
        if earlier or later:
            target = by_chunk.setdefault(max(earlier) if earlier else min(later), (set(), set()))
            target[0].update(by_chunk[number][0])
            target[1].update(by_chunk[number][1])
    _share_sides(items, tokens, by_chunk)
    return by_chunk


def _share_sides(items: Sequence[Item], tokens: Sequence[Token], places: Places) -> None:
    """Share the side of the first of two findings: "bilateral atelectasis and effusions"."""
    for place, item in enumerate(items[2:], start=2):
        joint, before = items[place - 1], items[place - 2]
        if (
            item.term.role is Role.FINDING
            and item.term.value in SIDED_FINDINGS
            and before.term.role is Role.FINDING
            and joint.term.role is Role.CONJUNCTION
            and tokens[joint.first].stem in _CLOSE_JOINTS
            and joint.last == item.first
            and any(token.stem in SIDES for token in tokens[: before.first])
            and not places.get(item.chunk, (set(), set()))[0]
        ):
            places.setdefault(item.chunk, (set(), set()))[0].update(places.get(before.chunk, (set(), set()))[0])
