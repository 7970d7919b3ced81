"""Reads Chinese sentences of a chest report. A smaller table than the English one (:mod:`echo_pl.reports.chinese_terms`).

Covers: clauses between commas, denial before an enumeration (未见, 无 ...) and after a finding (已吸收), doubt on either
side of a finding (考虑, 可能, 待排), sides and lobes, parts that are normal, and a change of a part (纵隔 ... 增宽).
Does not cover: denial across commas, grades, measurements as such, and findings that are not in the table, which a
report keeps word for word.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from echo_pl.reports.anatomy import ANATOMY, PAIRS
from echo_pl.reports.chinese_terms import (
    CHANGE_TERMS_ZH,
    DENIED_ZH,
    DENY_ZH,
    DOUBT_ZH,
    FINDING_TERMS_ZH,
    NORMAL_ZH,
    NOUNS_ZH,
    PART_TERMS_ZH,
)
from echo_pl.reports.concepts import BY_NAME
from echo_pl.reports.cues import Role
from echo_pl.reports.mention import Analysis, Mention, NormalPart, Status
from echo_pl.reports.report import OTHER

_SIDES: Final = {"左": ("left",), "右": ("right",), "双": ("left", "right"), "两": ("left", "right")}
_ZONES: Final = {"上": "upper", "中": "middle", "下": "lower", "尖": "apex", "底": "base", "舌": "lingula"}
_FILLERS = re.compile(r"[，,、及和与的\s。双两侧内均尚各其余影见示大小形态位置轮廓结构明显确切约在范围血管纹理野肺]")
_SENTENCE = re.compile(r"[。；;!！\n]+")
_CLAUSE = re.compile(r"[^，,：:]+")


def _table() -> dict[str, tuple[Role, str]]:
    words: dict[str, tuple[Role, str]] = {}
    for role, terms in ((Role.DENY, DENY_ZH), (Role.DENIED, DENIED_ZH), (Role.DOUBT, DOUBT_ZH), (Role.NORMAL, NORMAL_ZH)):
        words.update(dict.fromkeys(terms.split("|"), (role, "")))
    for role, table in ((Role.CHANGE, CHANGE_TERMS_ZH), (Role.PART, PART_TERMS_ZH), (Role.FINDING, FINDING_TERMS_ZH)):
        for name, terms in table.items():
            words.update(dict.fromkeys(terms.split("|"), (role, name)))
    words.update(dict.fromkeys(_SIDES, (Role.NEUTRAL, "side")))
    return words


_WORDS: Final = _table()
_ANY = re.compile("|".join(re.escape(word) for word in sorted(_WORDS, key=len, reverse=True)))


class ChineseReader:
    """Reads sentences of a chest report in Chinese."""

    def split(self, text: str) -> list[str]:
        """Cut a text into sentences; numbering before them is left out."""
        pieces = (re.sub(r"^\s*\d{1,2}[.、．)）]\s*", "", one).strip() for one in _SENTENCE.split(text))
        return [one for one in pieces if one]

    def read(self, sentence: str) -> Analysis:
        """Say what a sentence says."""
        return _read(sentence)


class _Clause:
    """What stands between two commas."""

    def __init__(self, text: str, offset: int) -> None:
        self.mentions: list[Mention] = []
        self.normals: list[NormalPart] = []
        self.parts: list[str] = []
        self.vague = False
        """Denies abnormality of no part."""
        self._text, self._offset = text, offset
        self._sides: tuple[str, ...] = ()
        self._from = 0
        self._denied = self._doubted = False
        for found in _ANY.finditer(text):
            self._take(found)

    def _take(self, found: re.Match[str]) -> None:
        role, value = _WORDS[found[0]]
        start, end = found.start() + self._offset, found.end() + self._offset
        for side in found[0] if role in (Role.PART, Role.NEUTRAL) else "":
            self._sides = _SIDES.get(side, self._sides)
        if role is Role.PART:
            self.parts.append(value)
        elif role is Role.DENY:
            self._denied = True
        elif role is Role.DOUBT:
            self._doubted = True
            self.mentions = [
                one._replace(status=Status.UNCERTAIN) if one.status is Status.POSITIVE else one for one in self.mentions
            ]
        elif role is Role.DENIED:
            self.mentions = [one._replace(status=Status.NEGATIVE, denied_as=NOUNS_ZH[one.concept]) for one in self.mentions]
        elif role is Role.FINDING:
            self._add(value, start, end)
        elif role is Role.CHANGE:
            pair = next((PAIRS[part, value] for part in reversed(self.parts) if (part, value) in PAIRS), "")
            if pair:
                self._add(pair, start, end)
        elif role is Role.NORMAL:
            self.vague = all(ANATOMY[part].region == OTHER for part in self.parts)
            for part in self.parts:
                anatomy = ANATOMY[part]
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
        region = BY_NAME[name].region
        if BY_NAME[name].moves:
            region = next((ANATOMY[part].region for part in reversed(self.parts) if part not in ("thorax", "chest")), region)
        noun = NOUNS_ZH[name] if status is Status.NEGATIVE else ""
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
