"""Words around a finding that decide its status and its place (``tables/cues.yaml``). English.

The terms are ConText's (Harkema et al. 2009): a trigger changes the status of findings in its
scope, a terminator ends the scope, and a pseudo-trigger contains the words of a trigger without its
effect.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple

from echo_pl.reports.lexicon import Lexicon
from echo_pl.reports.tables import check_names, read_table, words_of
from echo_pl.reports.vocabulary import CHANGES, CONCEPTS, PARTS


class Role(Enum):
    """Function of a phrase in a sentence."""

    FINDING = auto()
    PART = auto()
    CHANGE = auto()
    NORMALITY = auto()
    ABNORMALITY = auto()
    """An abnormality without a name, of a part or in general."""
    NEGATION = auto()
    """Trigger: negates the findings after it."""
    NEGATION_BACKWARD = auto()
    """Trigger: negates the findings before it."""
    DOUBT = auto()
    DOUBT_BACKWARD = auto()
    TERMINATOR = auto()
    CONJUNCTION = auto()
    """Continues a list: comma, and, or."""
    PSEUDO_TRIGGER = auto()


class Term(NamedTuple):
    """Meaning of a phrase."""

    role: Role
    value: str
    """Name of the finding, part or change; for some roles a kind; otherwise empty."""


_CUES: Final = read_table("cues")
_TRIGGERS: Final = _CUES["triggers"]
BOTH_WAYS: Final = "both"
"""Value of a doubt that acts backward as well: A versus B."""
LIMITS: Final = "limits"
"""Value of a normality that findings can have: "engorgement is within normal limits"."""
EXPANDED: Final = "expanded"
"""Value of a normality of the volume of the lungs."""
NORMAL_PARTS: Final = {kind: words_of(parts) for kind, parts in _CUES["normal_parts"].items()}
"""Value of a normality -> the parts that can have it; a value that is missing fits all."""
RESTARTS: Final = words_of(_CUES["restarts"])
"""Words that begin a new statement after a comma or "and": a negation before it ends."""
FILLERS: Final = words_of(_CUES["fillers"])
QUALIFIERS: Final = words_of(_CUES["qualifiers"])
"""Words that narrow a negation and stay in a canonical negative."""
SIZES: Final = words_of(_CUES["sizes"])
"""Qualifiers that may apply to a whole list: "no large effusion or pneumothorax"."""
BROAD_PARTS: Final = words_of(_CUES["broad_parts"])
SIDES: Final = {word: tuple(sides) for word, sides in _CUES["sides"].items()}
ZONES: Final[dict[str, str]] = _CUES["zones"]
LOCATING: Final = words_of(_CUES["locating"])
COPULAS: Final = words_of(_CUES["copulas"])
SIDED_FINDINGS: Final = words_of(_CUES["sided_findings"])
"""Findings whose side reports state."""
SIDELESS_PARTS: Final = words_of(_CUES["sideless_parts"])
ADJECTIVE_FINDINGS: Final = words_of(_CUES["adjective_findings"])
"""Findings that precede their part: "tortuous, calcified aorta"."""
NARROWING: Final = words_of(_CUES["narrowing"]) | frozenset(ZONES)
WEAKER_THAN_ABNORMALITY: Final = words_of(_CUES["weaker_than_abnormality"])

check_names("cues.yaml, findings", [*SIDED_FINDINGS, *ADJECTIVE_FINDINGS], CONCEPTS)
check_names("cues.yaml, parts", [*BROAD_PARTS, *SIDELESS_PARTS, *frozenset[str]().union(*NORMAL_PARTS.values())], PARTS)
check_names("cues.yaml, normal_parts", NORMAL_PARTS, _CUES["normality"])


def english_lexicon() -> Lexicon[Term]:
    """Return all phrases with their meanings; findings have priority over parts."""
    lexicon: Lexicon[Term] = Lexicon()
    for concept in CONCEPTS.values():
        lexicon.add(concept.terms, Term(Role.FINDING, concept.name))
    taken = {term for concept in CONCEPTS.values() for term in concept.terms}
    for part in PARTS.values():
        lexicon.add((term for term in part.terms if term not in taken), Term(Role.PART, part.name))
    for change in CHANGES.values():
        lexicon.add(change.terms, Term(Role.CHANGE, change.name))
    for kind, phrases in _CUES["normality"].items():
        lexicon.add(phrases, Term(Role.NORMALITY, "" if kind == "general" else kind))
    lexicon.add(_TRIGGERS["doubt_both_ways"], Term(Role.DOUBT, BOTH_WAYS))
    for role, phrases in (
        (Role.NEGATION, _TRIGGERS["negation"]),
        (Role.NEGATION_BACKWARD, _TRIGGERS["negation_backward"]),
        (Role.DOUBT, _TRIGGERS["doubt"]),
        (Role.DOUBT_BACKWARD, _TRIGGERS["doubt_backward"]),
        (Role.TERMINATOR, _CUES["terminators"]),
        (Role.CONJUNCTION, _CUES["conjunctions"]),
        (Role.ABNORMALITY, _CUES["abnormality"]),
        (Role.PSEUDO_TRIGGER, _CUES["pseudo_triggers"]),
    ):
        lexicon.add(phrases, Term(role, ""))
    return lexicon
