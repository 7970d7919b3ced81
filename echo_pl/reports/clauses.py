"""Clauses of a sentence: positive ones keep their words, denials become canonical.

A sentence is cut only if its pieces, read alone, have the mentions of the whole; otherwise it stays
whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from echo_pl.reports.canonical import no_abnormality_of, normal_part, sentence
from echo_pl.reports.mention import Analysis, Mention, NormalPart, Reader, Status
from echo_pl.reports.regions import OTHER
from echo_pl.reports.response import Language
from echo_pl.reports.vocabulary import DEVICES, PARTS, single_parts

_CUT_AT = frozenset({",", "and", "with", "but", "however", "although", "though", "while", ";", "，", "、", "yet"})
"""Joints at which a sentence may be cut; the joint is omitted."""
_CUT_BEFORE = frozenset({"without", "without evidence of", "no", "there is", "there are", "no evidence of", "negative for"})
"""Joints before which a sentence may be cut; the joint belongs to the clause."""
_REFERRING = re.compile(
    r"\s*(?:this|these|it|its|which|that|they|those|both of|also|in its|has|have)\b"
    r"|\s*(?:accompanied|associated|consistent|compatible|suggest\w*|represent\w*|most|is|are|was|were|may|could|likely|probably|possibly)\b",
    re.IGNORECASE,
)
"""Begin of text that refers to the words before it."""
_PARTICIPLE = re.compile(r"\b(?:suggest|show|demonstrat|indicat|represent|reflect)ing\s+$")
"""End of text that needs the words after it."""
_TAKES_WITH = re.compile(
    r"\b(?:accompanied|associated|combined|filled|together|along|compatible|consistent|contiguous)\s+$", re.IGNORECASE
)
"""End of text that needs the "with" after it."""
_ADJECTIVE = re.compile(
    r"\b(?:mediastinal|hilar|pulmonary|pleural|cardiac|aortic|thoracic|lumbar|cervical|left|right|upper|lower|basilar|apical|calcified)\s+$",
    re.IGNORECASE,
)
"""End of text whose noun follows the conjunction: "calcified mediastinal and hilar nodes"."""
_LEADING = re.compile(r"^(?:[,;:，、\s]|(?:and|with|but|however|although|though|while|also|yet)\b)+", re.IGNORECASE)

_TRAILING = re.compile(r"(?:[,;:，、\s]|\b(?:and|or|with|but|however|although|though|while|yet)\b)+$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clause:
    """A piece of a sentence about one thing, or the denials of one region."""

    regions: tuple[str, ...]
    """Its regions, the main one first."""
    source: str
    """Original words."""
    text: str = ""
    """Its sentence; empty for denials."""
    denied: tuple[str, ...] = ()
    """Nouns for a canonical negative."""
    canonical: bool = False
    """Made from the tables, not from the words of the report."""
    device: bool = False
    """Mentions devices only."""


@dataclass(slots=True)
class _Piece:
    start: int
    end: int
    mentions: list[Mention]
    normals: list[NormalPart]
    changed: list[str]
    """Regions of abnormal parts whose abnormality has no name."""

    @property
    def kind(self) -> str:
        if self.changed or any(one.status in (Status.POSITIVE, Status.UNCERTAIN) for one in self.mentions):
            return "positive"
        return "denied" if self.mentions or self.normals else ""

    @property
    def regions(self) -> tuple[str, ...]:
        there = [one.region for one in self.mentions if one.status is not Status.NEGATIVE] + self.changed
        normal = [one.region for one in self.normals]
        return (
            tuple(dict.fromkeys(there + normal)) if there else tuple(dict.fromkeys(normal + [one.region for one in self.mentions]))
        )


def _pieces(text: str, found: Analysis) -> list[_Piece]:
    cuts = [0]
    for start, end in found.joints:
        word = text[start:end].lower()
        if (word in _CUT_BEFORE and _PARTICIPLE.search(text[:start])) or (word == "and" and _ADJECTIVE.search(text[:start])):
            continue
        if word == "with" and _TAKES_WITH.search(text[:start]):
            continue
        if (word in _CUT_AT or word in _CUT_BEFORE) and start > cuts[-1] and not _REFERRING.match(text[end:]):
            cuts.append(start)
    pieces = []
    for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
        mentions = [one for one in found.mentions if start <= one.start < end]
        normals = [one for one in found.normals if start <= one.start < end]
        changed = [region for region, place in found.changed if start <= place < end]
        pieces.append(_Piece(start, end, mentions, normals, changed))
    return pieces


def _joined(pieces: Sequence[_Piece], *, by_region: bool) -> list[_Piece]:
    """Join neighbours of one kind (and region); a piece without content joins the one before it."""
    groups: list[_Piece] = []
    for piece in pieces:
        last = groups[-1] if groups else None
        if last is not None and (
            not piece.kind
            or not last.kind
            or (piece.kind == last.kind and (piece.kind == "denied" or not by_region or set(piece.regions) & set(last.regions)))
        ):
            last.end = piece.end
            last.mentions = [*last.mentions, *piece.mentions]
            last.normals = [*last.normals, *piece.normals]
            last.changed = [*last.changed, *piece.changed]
        else:
            groups.append(_Piece(piece.start, piece.end, list(piece.mentions), list(piece.normals), list(piece.changed)))
    return groups


def _claims(mentions: Sequence[Mention]) -> set[tuple[str, Status, tuple[str, ...], tuple[str, ...]]]:
    return {one.claim for one in mentions}


class ClauseCutter:
    """Cuts sentences of one language into clauses."""

    def __init__(self, reader: Reader, language: Language) -> None:
        self._reader, self._language = reader, language

    def cut(self, text: str, found: Analysis) -> list[Clause]:
        """Cut one sentence, without its full stop, that the reader has analysed."""
        pieces = _pieces(text, found)
        if len(pieces) > 1:
            for by_region in (True, False):
                groups = _joined(pieces, by_region=by_region)
                clauses = [self._clause(text, group, found, alone=len(groups) == 1) for group in groups]
                if all(one is not None for one in clauses):
                    return [one for several in clauses if several for one in several]
        whole = _Piece(0, len(text), list(found.mentions), list(found.normals), [region for region, _ in found.changed])
        return self._clause(text, whole, found, alone=True) or []

    def _clause(self, text: str, piece: _Piece, found: Analysis, *, alone: bool) -> list[Clause] | None:
        """Return the clauses of one group; None if it has other mentions when read alone."""
        source = _TRAILING.sub("", _LEADING.sub("", text[piece.start : piece.end])) if not alone else text
        if piece.kind == "denied":
            canonical = self._canonical(piece, found, source) or self._one_by_one(text, piece, found)
            if canonical is not None:
                return canonical
        words = source
        if not alone and _claims(self._reader.read(words).mentions) != _claims(piece.mentions):
            words = f"no {source}" if self._language == "en" else f"未见{source}"
            if piece.kind != "denied" or _claims(self._reader.read(words).mentions) != _claims(piece.mentions):
                return None
        if not re.search(r"\w", words):
            return []
        regions = tuple(one for one in piece.regions if one != OTHER) or self._named(words)
        mentions = [one for one in piece.mentions if one.status is not Status.NEGATIVE]
        return [
            Clause(
                regions=regions,
                source=source,
                text=sentence(words),
                device=bool(mentions) and all(one.concept in DEVICES for one in mentions),
            )
        ]

    def _one_by_one(self, text: str, group: _Piece, found: Analysis) -> list[Clause] | None:
        """Return the clauses of several denials; None if a piece cannot stand alone."""
        pieces = [one for one in _pieces(text, found) if group.start <= one.start < group.end]
        if len(pieces) < 2 or not all(one.kind == "denied" for one in pieces):
            return None
        clauses: list[Clause] = []
        for one in pieces:
            single = self._clause(text, one, found, alone=False)
            if single is None:
                return None
            clauses += single
        return clauses

    def _named(self, words: str) -> tuple[str, ...]:
        """Return the regions of the parts of a text without mentions."""
        regions = [PARTS[part].region for part in single_parts(self._reader.read(words).parts)]
        return tuple(dict.fromkeys(region for region in regions if region != OTHER)) or (OTHER,)

    def _canonical(self, piece: _Piece, found: Analysis, source: str) -> list[Clause] | None:
        """Return the canonical sentences of a group of denials; None if they would lose a word."""
        if any(piece.start <= start < piece.end for start, _ in found.unknown):
            return None
        named = [one for one in piece.mentions if not one.implied]
        if any(not one.denied_as or len(one.sides) == 1 for one in named) or any(len(one.sides) == 1 for one in piece.normals):
            return None
        clauses = []
        for one in piece.normals:
            if one.generic:
                text = no_abnormality_of(one.part, one.qualifiers, self._language)
            else:
                text = normal_part(one.part, self._language) if not one.qualifiers else ""
            if not text:
                return None
            clauses.append(Clause(regions=(one.region,), source=source, text=text, canonical=True))
        for region in dict.fromkeys(one.region for one in named):
            nouns = tuple(one.denied_as for one in named if one.region == region)
            clauses.append(Clause(regions=(region,), source=source, denied=nouns, canonical=True))
        return clauses
