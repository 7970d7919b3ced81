"""Words around a finding that decide what is said of it: denied, in doubt, normal, and where one statement ends.

A table of phrases by role, nothing else. English.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple

from echo_pl.reports.anatomy import CHANGES, PARTS
from echo_pl.reports.concepts import CONCEPTS
from echo_pl.reports.lexicon import Lexicon, word_set


class Role(Enum):
    """What a phrase does in a sentence."""

    FINDING = auto()
    PART = auto()
    CHANGE = auto()
    NORMAL = auto()
    GENERIC = auto()
    """An abnormality without a name: of a part, or of nothing in particular."""
    DENY = auto()
    """Denies what follows."""
    DENIED = auto()
    """Denies what stands before."""
    DOUBT = auto()
    """What follows is in doubt."""
    DOUBTED = auto()
    """What stands before is in doubt."""
    BREAK = auto()
    """Neither denial nor doubt reaches over it."""
    JOINT = auto()
    """Enumerates: comma, and, or."""
    NEUTRAL = auto()
    """Looks like one of the others and is not."""


class Term(NamedTuple):
    """What a phrase stands for."""

    role: Role
    value: str


_DENY = """no | not | without | negative for | free of | clear of | absence of | no evidence of | without evidence of | nor
| neither
| rather than | lack of | grossly clear of | resolution of | interval resolution of | clearing of | removal of
| interval removal of | absent
| interval clearing of | nonvisualization of | no evidence for | without evidence for | no sign of | negative"""
_DENIED = """has resolved | have resolved | is absent | are absent | has been removed | have been removed | is not seen
| are not seen
| not identified | not seen | has cleared | have cleared | ruled out | is excluded | not demonstrated | not appreciated
| not present
| no longer seen | no longer visualized | no longer present | no longer identified | no longer evident | now resolved
| have been resolved
| has been resolved | has completely resolved | interval removed | not visualized | resolved"""
_DOUBT = """may | may represent | might | could | possible | possibly | probable | probably | likely | suspicious for
| suspicion of
| suspicion for | concerning for | concern for | question of | questionable | suggestive of | suggest | suggesting | suggestion of
| suspected | suspect | presumed | presumably | potential | potentially | worrisome for | cannot exclude | perhaps
| consider | differential | if | question | may be related to | could be due to | would suggest | cannot rule out | equivocal
| difficult to exclude | borderline for | may indicate | should be considered for | less likely | concern of | not exclude
| can not exclude | does not exclude | rule out | worrisome | probable early"""
_DOUBTED = """is possible | cannot be excluded | can not be excluded | not excluded | is suspected | should be considered
| is a consideration | not entirely excluded | cannot be entirely excluded | is questionable | are possible | is not excluded
| could not be excluded | are suspected | is likely | not be excluded | cannot be completely excluded
| would be difficult to exclude | may be present | not completely excluded | is a possibility | cannot be ruled out"""
_VERSUS = "versus | vs"
_BREAK = """but | however | although | though | while | except | with | which | whereas | ; | other than | apart from
| aside from | yet | despite | due to | secondary to | therefore | except for | with exception of | that | demonstrating | showing
| because | since | also | there is | there are | related to | where | as well as | likely due to | likely secondary to
| possibly related to | possibly secondary to | possibly due to | likely related to | probably related to
| probably secondary to"""
_JOINT = ", | and | or | / | and / or | or / and"
_NORMAL = """normal | unremarkable | normal in size | preserved | maintained | normal in size and contour | normal in contour
| normal in appearance | grossly normal | normal size | normal in size and configuration | normal in size and shape
| well preserved
| satisfactory | normal size and contour | normal in configuration | unremarkable in appearance | normal for size | normal for age
| upper limit of normal | top normal | upper limit of normal in size | top normal in size | top limit of normal
| upper limit normal
| upper normal | upper limit of normal size | high normal | near top normal | top normal limit | normal in caliber
| normal in position
| nonenlarged"""
_WITHIN_LIMITS = """within normal limit | normal limit | in normal limit | within limit | within normal range
| within normal size limit
| within limit of normal | within normal limit for size and contour | within normal limit in size | within normal limit for size
| within normal limit for contour | within normal limit in size and contour"""
_NORMAL_OF: Final = {
    "clear": "clear | grossly clear",
    "midline": "midline | central | in the midline",
    "sharp": "sharp | smooth",
    "intact": "intact | grossly intact",
    "symmetric": "symmetric",
}
"""Words of normality that are said of some parts only."""
_EXPANDED = """well expanded | well aerated | normally inflated | normally expanded | well inflated | fully expanded
| normally aerated
| inflated | expanded | aerated | symmetrically inflated | symmetrically aerated | well ventilated | fully inflated
| adequately inflated"""
_GENERIC = """abnormality | disease | process | finding | pathology | abnormal | disease process | injury | trauma | problem
| irregularity | pathologic process"""
_NEUTRAL = """view of the chest | radiograph of the chest | view the chest | no progression | no interval progression | no growth
| no change | no significant change | no interval change | no longer | not significantly changed | not changed
| not included
| no significant interval change | without change | without significant change | no increase | not only | not well seen
| not well visualized
| not well evaluated | not clearly | no definite change | not fully | not completely | not entirely | not optimally
| within | consistent with | compatible with | most consistent with | as compared with | compared with | in comparison with
| comparison with | along with | correlation with | correlate with | correlated with | not appreciably | lateral view | followup
| not definitely changed | not substantially changed | not well demonstrated | not be well seen | clear cut | no interval growth
| no appreciable change | no acute change | stable | not further | no adverse interval change | negative chest | not measurably
| if clinically indicated | as clinically indicated | if indicated | if there is clinical concern | if concern
| if symptoms persist
| clinical concern | if clinically warranted | if needed | if further evaluation | crystal clear
| not significantly interval changed | fluid level | air fluid level | no adverse change | normal variant | in keeping with
| in the setting of | with respect to | not seen on the previous | not seen on previous | not seen on the prior
| not seen on prior
| not seen previously | not present on the prior | not present on prior | not present on the previous | not present previously

| thoracic cavity | chest cavity
| large volume | small volume | moderate volume | not previously seen | not visualized on the prior | not visualized on prior"""

BOTH_WAYS: Final = "both"
"""Value of a doubt that reaches back as well: A versus B."""
LIMITS: Final = "limits"
"""Value of a normality that is said of findings as well: "engorgement is within normal limits"."""
NORMAL_PARTS: Final[dict[str, frozenset[str]]] = {
    "clear": word_set("lungs pulmonary pleura costophrenic_angle trachea airway"),
    "midline": word_set("trachea mediastinum"),
    "sharp": word_set("costophrenic_angle diaphragm mediastinum heart hila"),
    "intact": word_set("bones spine ribs joint soft_tissue thorax diaphragm"),
    "symmetric": word_set("thorax lungs hila soft_tissue"),
}
"""Value of a normality -> the parts that it is said of; those that are not here are said of all."""
EXPANDED: Final = "expanded"
"""Value of a normality that is of lungs alone, and of their volume."""
_BY_ROLE: Final = {
    Role.DENY: _DENY,
    Role.DENIED: _DENIED,
    Role.DOUBT: _DOUBT,
    Role.DOUBTED: _DOUBTED,
    Role.BREAK: _BREAK,
    Role.JOINT: _JOINT,
    Role.NORMAL: _NORMAL,
    Role.GENERIC: _GENERIC,
    Role.NEUTRAL: _NEUTRAL,
}

RESTARTS: Final[frozenset[str]] = word_set(
    """
    there the mild mildly moderate moderately stable unchanged chronic degenerative minimal minimally scattered heart lung
    cardiac this these some prominent old calcified tortuous again is are low left right bilateral bibasilar slight slightly has
    have it patient multiple severe marked probable possible likely status previous cardiomegaly atherosclerotic aortic thoracic
    a an however cardiomediastinal small both mediastinal normal consistent interval persistent
    """
)
"""After a comma or "and" these begin a statement of their own: the denial before does not reach it."""

FILLERS: Final[frozenset[str]] = word_set(
    """
    the a an is are was were there of evidence evident seen identified noted present visualized demonstrated appear appearance
    be been has have any to in on for size contour configuration shape caliber sign radiographic radiographically visible at
    this time it appreciated detected found within limit also specifically as both bilateral bilaterally field structure
    silhouette area space grossly thorax remain remains width border margin position finding show shows reveal demonstrate
    demonstrates , and or : by its
    """
)
"""Words that a canonical negative can do without."""
QUALIFIERS: Final[frozenset[str]] = word_set(
    """
    acute active focal large displaced definite suspicious significant new obvious gross sizable sizeable overt noncalcified
    discrete confluent lobar convincing frank dominant abnormal pathologic nondisplaced moderate major apparent destructive
    patchy aggressive marked substantial clear-cut concerning measurable small subtle layering tension residual
    """
)
"""Words that narrow what is denied, and stay in a canonical negative."""
SIZES: Final[frozenset[str]] = word_set("large sizable sizeable significant definite gross obvious overt")
"""Qualifiers that may be meant of all that an enumeration denies: "no large effusion or pneumothorax"."""
BROAD_PARTS: Final[frozenset[str]] = frozenset({"lungs", "pulmonary", "pleura", "chest"})
"""Parts whose name adds nothing to the finding that is denied in them."""

SIDES: Final[dict[str, tuple[str, ...]]] = {
    "left": ("left",),
    "leftward": ("left",),
    "right": ("right",),
    "rightward": ("right",),
    "bilateral": ("left", "right"),
    "bilaterally": ("left", "right"),
    "both": ("left", "right"),
    "bibasilar": ("left", "right"),
    "biapical": ("left", "right"),
    "lingula": ("left",),
    "lingular": ("left",),
    "bihilar": ("left", "right"),
}
ZONES: Final[dict[str, str]] = {
    "upper": "upper",
    "middle": "middle",
    "mid": "middle",
    "midlung": "middle",
    "lower": "lower",
    "lingula": "lingula",
    "lingular": "lingula",
    "base": "base",
    "basilar": "base",
    "basal": "base",
    "bibasilar": "base",
    "apex": "apex",
    "apical": "apex",
    "biapical": "apex",
    "perihilar": "perihilar",
    "retrocardiac": "retrocardiac",
    "suprahilar": "suprahilar",
    "infrahilar": "infrahilar",
}


def phrases(text: str) -> tuple[str, ...]:
    """Phrases of a line of the table."""
    return tuple(part.strip() for part in text.replace("\n", " ").split("|") if part.strip())


def english_lexicon() -> Lexicon[Term]:
    """All phrases, by role; a phrase that denies both ways counts for what stands before."""
    lexicon: Lexicon[Term] = Lexicon()
    for concept in CONCEPTS:
        lexicon.add(concept.terms, Term(Role.FINDING, concept.name))
    taken = {term for concept in CONCEPTS for term in concept.terms}
    for part in PARTS:
        lexicon.add((term for term in part.terms if term not in taken), Term(Role.PART, part.name))
    for change, text in CHANGES.items():
        lexicon.add(phrases(text), Term(Role.CHANGE, change))
    lexicon.add(phrases(_WITHIN_LIMITS), Term(Role.NORMAL, LIMITS))
    for value, text in _NORMAL_OF.items():
        lexicon.add(phrases(text), Term(Role.NORMAL, value))
    lexicon.add(phrases(_EXPANDED), Term(Role.NORMAL, EXPANDED))
    lexicon.add(phrases(_VERSUS), Term(Role.DOUBT, BOTH_WAYS))
    for role, text in _BY_ROLE.items():
        lexicon.add(phrases(text), Term(role, ""))
    return lexicon
