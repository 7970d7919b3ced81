"""What reaches what in an English sentence: denials and doubts, what is said of which part, and the sides and zones of each.

Works on the phrases of one sentence, in order. Rules of thumb, each as small as it could be made; knows no finding by name but
two that stand before their part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from echo_pl.reports.cues import BOTH_WAYS, LIMITS, RESTARTS, SIDES, ZONES, Role, Term
from echo_pl.reports.lexicon import Match, Token, word_set
from echo_pl.reports.mention import Status

_LOCATING = word_set(
    """
    in within of at over overlying near along to from on above below under adjacent involving through throughout projecting
    about around into behind between across toward towards underlying approximating
    """
)
_COPULAS = frozenset(["is", "are", "was", "were", "appear", "remain", "be", "to"])
_CLOSE_JOINTS = frozenset({"and", "or", "/"})
_SIDED = word_set(
    """
    effusion atelectasis opacity consolidation pneumothorax pneumonia nodule scarring pleural_thickening costophrenic_blunting
    mass granuloma
    """
)
"""Findings of which reports say on which side they are."""
_SIDELESS_PARTS = frozenset({"heart", "vein"})
_ADJECTIVES = frozenset({"calcification", "atherosclerosis"})
"""Findings that stand before the part they are found in: "tortuous, calcified aorta"."""


@dataclass(slots=True)
class Item:
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

    @property
    def status(self) -> Status:
        """What is said of it."""
        if self.denied:
            return Status.NEGATIVE
        return Status.UNCERTAIN if self.doubted else Status.POSITIVE


def items_of(matches: Sequence[Match[Term]]) -> list[Item]:
    """Phrases as they were found, before anything reaches them."""
    return [Item(match.first, match.last, match.entry) for match in matches]


def _goes_on(items: Sequence[Item], place: int, tokens: Sequence[Token]) -> bool:
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


def carry(items: Sequence[Item], tokens: Sequence[Token]) -> None:
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
        elif (
            item.term == Term(Role.NORMAL, LIMITS)
            and place
            and items[place - 1].term.role is Role.FINDING
            and _copula(tokens, items[place - 1], item)
        ):
            items[place - 1].denied = True  # "engorgement is within normal limits"
        elif role in (Role.DENIED, Role.DOUBTED):
            for earlier in items[:place]:
                if earlier.clause == clause:
                    earlier.denied |= role is Role.DENIED
                    earlier.doubted |= role is Role.DOUBTED
        item.denied, item.doubted, item.clause, item.chunk = denied, doubted, clause, chunk


def _copula(tokens: Sequence[Token], left: Item, right: Item) -> bool:
    """Whether only "is" or "appears" stands between two phrases."""
    between = [token.stem for token in tokens[left.last : right.first]]
    return bool(between) and all(word in _COPULAS for word in between)


def _doubt_before(items: Sequence[Item], place: int, clause: int) -> None:
    """A versus B: the finding right before is in doubt as well."""
    for earlier in reversed(items[:place]):
        if earlier.term.role is Role.FINDING and earlier.clause == clause:
            earlier.doubted = True
            return


def _located(item: Item, items: Sequence[Item], tokens: Sequence[Token]) -> bool:
    """Whether a part only says where a finding before it is: "nodule in the left lung"."""
    before = [one for one in items if one.last <= item.first and one.clause == item.clause]
    if not any(one.term.role is Role.FINDING for one in before):
        return False
    window = tokens[max(item.first - 5, 0) : item.first]
    return any(token.stem in _LOCATING for token in window)


def _adjective(items: Sequence[Item], place: int) -> bool:
    """Whether a finding that stands before its part is here."""
    return place < len(items) and items[place].term.role is Role.FINDING and items[place].term.value in _ADJECTIVES


def attach(items: Sequence[Item], tokens: Sequence[Token]) -> None:
    """Say of every change, normality and abnormality which parts it is said of."""
    group: list[str] = []  # parts that wait for what is said of them, or of which something was said
    said = False  # whether something was said of the group
    waiting: list[Item] = []  # said before its part: "enlarged heart"
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


def places_of(items: Sequence[Item], tokens: Sequence[Token]) -> dict[int, tuple[set[str], set[str]]]:
    """Sides and zones by chunk; those of a chunk without a finding go to the one before it, or else after it."""
    silent = {
        i for one in items if one.term.role is Role.PART and one.term.value in _SIDELESS_PARTS for i in range(one.first, one.last)
    }
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
    _share_sides(items, tokens, by_chunk)
    return by_chunk


def _share_sides(items: Sequence[Item], tokens: Sequence[Token], places: dict[int, tuple[set[str], set[str]]]) -> None:
    """A side before the first of two findings is of both: "bilateral atelectasis and effusions"."""
    for place, item in enumerate(items[2:], start=2):
        joint, before = items[place - 1], items[place - 2]
        if (
            item.term.role is Role.FINDING
            and item.term.value in _SIDED
            and before.term.role is Role.FINDING
            and joint.term.role is Role.JOINT
            and tokens[joint.first].stem in _CLOSE_JOINTS
            and joint.last == item.first
            and any(token.stem in SIDES for token in tokens[: before.first])
            and not places.get(item.chunk, (set(), set()))[0]
        ):
            places.setdefault(item.chunk, (set(), set()))[0].update(places.get(before.chunk, (set(), set()))[0])
