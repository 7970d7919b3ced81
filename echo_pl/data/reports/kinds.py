"""What a sentence of a report is about: the patient, the examination, an earlier one, a telephone call, or what it all means.

Judges one sentence by its words and by what a reader found in it. English and Chinese.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from echo_pl.data.reports.mention import Analysis


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
REFERRING: Final = _any(
    r"^(?:this|these|it|they)\b",
    r"^the (?:largest|smallest|other|smaller|larger|former|latter|appearance|second|first)\b",
)
"""A sentence that begins like this speaks of what the one before it speaks of."""
_VIEWS = re.compile(r"\b(?:examination|exam|study|radiographs?) (?:is|was|consists?|are)\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]{2,}|[\u4e00-\u9fff]")
_WHOLE_CHEST = frozenset({"chest", "thorax"})


def kind_of(sentence: str, found: Analysis) -> Kind:
    """Say what a sentence is; what names a finding or a device is never technique, comparison or a remnant."""
    if found.globally_normal and not found.mentions:
        return Kind.INTERPRETATION
    if not found.mentions and not found.normals:
        silent = set(found.parts) <= _WHOLE_CHEST
        if len(_WORD.findall(sentence)) < 2 and not _MEANING.search(sentence):
            return Kind.REMNANT
        if silent and _COMMUNICATION.search(sentence):
            return Kind.COMMUNICATION
        if REFERRING.search(sentence) and not _VIEWS.search(sentence):
            return Kind.STATEMENT
        if _MEANING.search(sentence):
            return Kind.INTERPRETATION
        if _TECHNIQUE.search(sentence) and (silent or not _COMPARISON.search(sentence)):
            return Kind.TECHNIQUE
        if silent and _COMPARISON.search(sentence):
            return Kind.COMPARISON
        if silent and _REMNANT.search(sentence):
            return Kind.REMNANT
        return Kind.STATEMENT
    if _MEANING.search(sentence):
        return Kind.INTERPRETATION
    return Kind.STATEMENT
