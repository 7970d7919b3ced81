"""Analysis of Chinese sentences; the tables have fewer Chinese terms than English ones.

Covers: clauses between commas, negation before a list (未见, 无 ...) and after a finding (已吸收), doubt
on either side of a finding (考虑, 可能, 待排), sides and lobes, normal parts, and a change of a part (纵隔
... 增宽). Does not cover: negation across commas, grades, measurements, and findings outside the
tables, which a normalized report keeps word for word.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from echo_pl.reports.cues import Role
from echo_pl.reports.mention import Analysis, Mention, NormalPart, Reader, Status
from echo_pl.reports.regions import OTHER
from echo_pl.reports.sentences import split_chinese
from echo_pl.reports.tables import read_table
from echo_pl.reports.vocabulary import CHANGES, CONCEPTS, PAIRS, PARTS

_CUES: Final = read_table("cues")["chinese"]
_SIDES: Final = {word: tuple(sides) for word, sides in _CUES["sides"].items()}
_ZONES: Final[dict[str, str]] = _CUES["zones"]
_FILLERS = re.compile(r"[，,、及和与的\s。双两侧内均尚各其余影见示大小形态位置轮廓结构明显确切约在范围血管纹理野肺]")
_CLAUSE = re.compile(r"[^，,：:]+")


def _terms() -> dict[str, tuple[Role, str]]:
    """Return the meaning of each term; of two meanings the last one added holds."""
    terms: dict[str, tuple[Role, str]] = {}
    for role, name in (
        (Role.NEGATION, "negation"),
        (Role.NEGATION_BACKWARD, "negation_backward"),
        (Role.DOUBT, "doubt"),
        (Role.NORMALITY, "normality"),
    ):
        terms.update(dict.fromkeys(_CUES[name], (role, "")))
    for role, table in ((Role.CHANGE, CHANGES), (Role.PART, PARTS), (Role.FINDING, CONCEPTS)):
        for row in table.values():
            terms.update(dict.fromkeys(row.terms_zh, (role, row.name)))
    terms.update(dict.fromkeys(_SIDES, (Role.PSEUDO_TRIGGER, "side")))
    return terms


_WORDS: Final = _terms()
_ANY = re.compile("|".join(re.escape(word) for word in sorted(_WORDS, key=len, reverse=True)))


class _Clause:
    """Text between two commas."""

    def __init__(self, text: str, offset: int) -> None:
        self.mentions: list[Mention] = []
        self.normals: list[NormalPart] = []
        self.parts: list[str] = []
        self.vague = False
        """Denies an abnormality of no part in particular."""
        self._text, self._offset = text, offset
        self._sides: tuple[str, ...] = ()
        self._from = 0
        self._denied = self._doubted = False
        for found in _ANY.finditer(text):
            self._take(found)

    def _take(self, found: re.Match[str]) -> None:
        role, value = _WORDS[found[0]]
        start, end = found.start() + self._offset, found.end() + self._offset
        for side in found[0] if role in (Role.PART, Role.PSEUDO_TRIGGER) else "":
            self._sides = _SIDES.get(side, self._sides)
        if role is Role.PART:
            self.parts.append(value)
        elif role is Role.NEGATION:
            self._denied = True
        elif role is Role.DOUBT:
            self._doubted = True
            self.mentions = [
                one._replace(status=Status.UNCERTAIN) if one.status is Status.POSITIVE else one for one in self.mentions
            ]
        elif role is Role.NEGATION_BACKWARD:
            self.mentions = [one._replace(status=Status.NEGATIVE, denied_as=CONCEPTS[one.concept].noun_zh) for one in self.mentions]
        elif role is Role.FINDING:
            self._add(value, start, end)
        elif role is Role.CHANGE:
            pair = next((PAIRS[part, value] for part in reversed(self.parts) if (part, value) in PAIRS), "")
            if pair:
                self._add(pair, start, end)
        elif role is Role.NORMALITY:
            self.vague = all(PARTS[part].region == OTHER for part in self.parts)
            for part in self.parts:
                anatomy = PARTS[part]
                if anatomy.region == OTHER:
                    continue
                self.normals.append(NormalPart(part, anatomy.region, self._sides, start, end, "异常" in found[0]))
                for name in anatomy.denies:
                    self.mentions.append(Mention(name, Status.NEGATIVE, self._sides, (), anatomy.region, start, end, True))

    def _add(self, name: str, start: int, end: int) -> None:
        status = Status.NEGATIVE if self._denied else Status.UNCERTAIN if self._doubted else Status.POSITIVE
        between = self._text[self._from : start - self._offset]
        zones = tuple(
            sorted({zone for sign, zone in _ZONES.items() if re.search(rf"{sign}(?:肺|叶|野)|肺{sign}|{sign}段", between)})
        )
        self._from = end - self._offset
        region = CONCEPTS[name].region
        if CONCEPTS[name].moves:
            region = next((PARTS[part].region for part in reversed(self.parts) if part not in ("thorax", "chest")), region)
        noun = CONCEPTS[name].noun_zh if status is Status.NEGATIVE else ""
        self.mentions.append(Mention(name, status, self._sides, zones, region, start, end, False, noun))


@lru_cache(maxsize=65_536)
def _read(sentence: str) -> Analysis:
    clauses = [_Clause(found[0], found.start()) for found in _CLAUSE.finditer(sentence)]
    mentions = tuple(one for clause in clauses for one in clause.mentions)
    normals = tuple(one for clause in clauses for one in clause.normals)
    parts = tuple(one for clause in clauses for one in clause.parts)
    joints = tuple((one.start(), one.end()) for one in re.finditer(r"[，,、]", sentence))
    left = [one.span() for one in re.finditer(r".", sentence) if not _FILLERS.match(one[0])]
    known = {i for one in _ANY.finditer(sentence) if one[0] not in "左右" for i in range(one.start(), one.end())}
    unknown = tuple(span for span in left if span[0] not in known)
    vague = any(clause.vague for clause in clauses) and not normals and not mentions
    return Analysis(mentions, normals, parts, vague, joints, (), unknown)


CHINESE = Reader(split_chinese, _read)
