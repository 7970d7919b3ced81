"""What a sentence of a report is about: the patient, the examination, an earlier one, a telephone call, or what it all means.

Judges one sentence by its words and by what a reader found in it. English and Chinese.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from echo_pl.reports.lexicon import word_set
from echo_pl.reports.mention import Analysis


class Kind(Enum):
    """What becomes of a sentence."""

    STATEMENT = "statement"
    INTERPRETATION = "interpretation"
    """Belongs to the impression."""
    TECHNIQUE = "technique"
    COMPARISON = "comparison"
    COMMUNICATION = "communication"
    REMNANT = "deidentification"
    """What is left of a sentence whose subject was a de-identification mark."""


def _any(*alternatives: str) -> re.Pattern[str]:
    """A pattern that finds one of several, whatever their case."""
    return re.compile("|".join(alternatives), re.IGNORECASE)


_TECHNIQUE = _any(
    r"\b(?:views?|radiographs?|radiographic|projections?|images?|imaging|films?|examination|exam|study|studies|submitted)\b",
    r"\b(?:portable|technique|technical|PA|AP|lateral|frontal|upright|erect|supine|rotated|rotation|penetrat\w+|exposure|field)\b",
    r"\b(?:artifacts?|decubitus|obtained|positioning|cassettes?|inspiration|habitus|lordotic|oblique|kub|motion)\b",
    "摄片|投照|体位|胸片正侧位|摄影",
)
_COMPARISON = _any(
    r"\b(?:comparison|compar\w+|prior|priors|previous\w*|interval|unchanged|stable|since|earlier|again|redemonstrat\w+|similar)\b",
    r"\bno (?:significant |interval )*change\b",
    "对比|比较|前片|上次",
)
_COMMUNICATION = _any(
    r"\b(?:discussed|notified|notification|message|doctor|telephone\w*|phone|communicated|paged|called|dr|physician|documented)\b",
    r"\b(?:reported to|critical result\w*|primordial|dictated|signed|read by|receipt|transcribed|technologist)\b",
    r"\bend of (?:report|impression)\b",
    "电话|已告知|危急值",
)
_MEANING = _any(
    r"^(?:the |these |this |overall |above |all )*(?:findings?|constellation|appearances?|features|picture|combination)\s+"
    r"(?:\w+\s+){0,3}?(?:consistent|compatible|suggest\w*|represent\w*|indicat\w+|likely|probably|reflect\w*|concerning|worrisome|related|due|could"
    r"|may)\b",
    r"^impression\b",
    r"^(?:normal|negative) (?:chest|exam\w*|study|cxr)\b",
    r"^no (?:acute|active) (?:disease|process|findings?|abnormalit\w+)$",
    r"\b(?:recommend\w*|correlat\w+|advised|suggested|warranted|follow-? ?up|please|differential|helpful|can be obtained)\b",
    r"\bfurther (?:evaluation|imaging|work)|\bclinically indicated\b|\bshould be (?:considered|obtained)\b",
    r"\bif (?:clinically|indicated|there|concern|symptoms)\b",
    "请结合|建议|符合.{0,12}改变|考虑为",
)
_REMNANT = re.compile(
    r"^(?:and |or |the )*(?:is|are|was|were|appears?|has|have|and|of|in|to|with|within|by|at|on|for|as|t)\b", re.I
)
_UNFINISHED = re.compile(r"\b(?:is|are|was|were|the|a|an|of)$", re.IGNORECASE)
REFERRING: Final = _any(
    r"^(?:this|these|it|they)\b",
    r"^the (?:largest|smallest|other|smaller|larger|former|latter|appearance|second|first)\b",
)
"""A sentence that begins like this speaks of what the one before it speaks of."""
_VIEWS = re.compile(r"\b(?:examination|exam|study|radiographs?) (?:is|was|consists?|are)\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]{2,}|[\u4e00-\u9fff]")
_WHOLE_CHEST = frozenset({"chest", "thorax"})


ABOUT_THE_EXAMINATION: Final = word_set(
    """
    the and a an of in on to at is are was were has have had be been with without for from by as this these that there it which
    no not or but due two three four one single total number chest cxr thorax examination exam exams interval obtained heart
    lungs frontal consists consist radiograph radiographs stable views view comparison comparisons prior previous priors earlier
    appearance patient patients limited study studies critical change changes changed notification result results habitus
    through documented available findings finding rotated body images image projection projections significant significantly
    compared similar discussed film films report since could lordotic end artifact evaluation evaluate scan telephone somewhat
    partially hours however old overall technique technically recommendations recommendation receipt decubitus notified thoracic
    radiographic radiographically radiography slightly slight appears appear motion would markedly given stability performed
    time imaging visualized seen shown called informed acknowledged oblique evidence above below supine upright erect physician
    physicians ordering referring employed notify secondary direct rotation submitted review adequately addended outside
    unchanged useful technical factors repeated expiratory inspiratory inspiration inspirational effort improved better
    interpretation detail conveyed communication will message doctor service department admission note portable suboptimal
    related position positioning positional semi again ct dated also made now current present today date identified primordial
    dr am pm kub ap pa penetration underpenetrated exposure redemonstration demonstrated most recent mild mildly large small
    field quality degree differences difference considering accounting allowing otherwise grossly essentially other examinations
    interim history overlying clothing signed dictated read lateral crosstable shielded medial attenuation obscures condition
    projectional followup
    """
)
"""Words of sentences about the examination. A sentence with another word may say something of the patient, and is kept."""
_NORMALITY = word_set("intact normal unremarkable negative within limits remain remains clear mildly well preserved grossly")
_LATIN = re.compile(r"[a-z]{2,}")


def about_the_examination(sentence: str) -> bool:
    """Whether a sentence has only words of examinations and reports."""
    return all(word in ABOUT_THE_EXAMINATION for word in _LATIN.findall(sentence.lower()))


def _is_remnant(sentence: str) -> bool:
    """Whether only words of examinations and of normality are left."""
    return all(word in ABOUT_THE_EXAMINATION or word in _NORMALITY for word in _LATIN.findall(sentence.lower()))


def kind_of(sentence: str, found: Analysis) -> Kind:
    """Say what a sentence is; what names a finding or a device is never technique, comparison or a remnant."""
    if found.globally_normal and not found.mentions:
        return Kind.INTERPRETATION
    if not found.mentions and not found.normals:
        silent = set(found.parts) <= _WHOLE_CHEST
        if found.parts and len(_WORD.findall(sentence)) < 5 and _UNFINISHED.search(sentence):
            return Kind.REMNANT
        if len(_WORD.findall(sentence)) < 2 and (found.parts or _is_remnant(sentence)):
            return Kind.REMNANT
        if silent and _COMMUNICATION.search(sentence):
            return Kind.COMMUNICATION
        if REFERRING.search(sentence) and not _VIEWS.search(sentence):
            return Kind.STATEMENT
        if _MEANING.search(sentence):
            return Kind.INTERPRETATION
        if silent and about_the_examination(sentence):
            if _TECHNIQUE.search(sentence):
                return Kind.TECHNIQUE
            if _COMPARISON.search(sentence):
                return Kind.COMPARISON
        if silent and _REMNANT.search(sentence) and _is_remnant(sentence):
            return Kind.REMNANT
        return Kind.STATEMENT
    if _MEANING.search(sentence):
        return Kind.INTERPRETATION
    return Kind.STATEMENT
