"""What a sentence of a report is about: the patient, the examination, an earlier one, a telephone call, or what it all means.

Judges one sentence by its words and by what a reader found in it. English and Chinese.
"""

from __future__ import annotations

import re
from enum import Enum

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


_TECHNIQUE = re.compile(
    r"\b(?:views?|radiographs?|radiographic|projections?|images?|imaging|films?|examination|exam|study|studies|portable|technique|technical|PA|AP|"
    r"lateral|frontal|upright|erect|supine|rotated|rotation|penetrat\w+|exposure|field|artifacts?|decubitus|obtained|positioning|cassettes?|"
    r"inspiration|habitus|lordotic|oblique|kub|submitted|motion)\b|摄片|投照|体位|胸片正侧位|摄影",
    re.IGNORECASE,
)
_COMPARISON = re.compile(
    r"\b(?:comparison|compar\w+|prior|priors|previous\w*|interval|unchanged|stable|no (?:significant |interval )*change|since|earlier|again|"
    r"redemonstrat\w+|similar)\b|对比|比较|前片|上次",
    re.IGNORECASE,
)
_COMMUNICATION = re.compile(
    r"\b(?:discussed|notified|notification|message|doctor|telephone\w*|phone|communicated|paged|called|dr|physician|documented|reported to|critical result\w*|"
    r"primordial|dictated|signed|read by|receipt|transcribed|technologist|veriphy|acknowledged)\b|电话|已告知|危急值",
    re.IGNORECASE,
)
_MEANING = re.compile(
    r"^(?:the |these |this |overall |above |all )*(?:findings?|constellation|appearances?|features|picture|combination)\s+(?:\w+\s+){0,3}?"
    r"(?:consistent|compatible|suggest\w*|represent\w*|indicat\w+|likely|probably|reflect\w*|concerning|worrisome|favou?r\w*|related|due|could|may)\b"
    r"|^impression\b|^(?:normal|negative) (?:chest|exam\w*|study|cxr)\b|\b(?:recommend\w*|correlat\w+|advised|suggested|warranted|follow-? ?up|"
    r"further (?:evaluation|imaging|work)|please|clinically indicated|should be (?:considered|obtained)|differential|would be helpful|may be helpful|"
    r"can be obtained|if (?:clinically|indicated|there|concern|symptoms))\b|^no (?:acute|active) (?:disease|process|findings?|abnormalit\w+)$|请结合|建议|符合.{0,12}改变|考虑为",
    re.IGNORECASE,
)
_REMNANT = re.compile(r"^(?:and |or |the )*(?:is|are|was|were|appears?|has|have|and|of|in|to|with|within|by|at|on|for|as|t)\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{2,}|[\u4e00-\u9fff]")
_WHOLE_CHEST = frozenset({"chest", "thorax"})


def kind_of(sentence: str, found: Analysis) -> Kind:
    """Say what a sentence is; what names a finding or a device is never technique, comparison or a remnant."""
    if found.globally_normal and not found.mentions:
        return Kind.INTERPRETATION
    if not found.mentions and not found.normals:
        silent = set(found.parts) <= _WHOLE_CHEST
        if silent and _COMMUNICATION.search(sentence):
            return Kind.COMMUNICATION
        if _MEANING.search(sentence):
            return Kind.INTERPRETATION
        if _TECHNIQUE.search(sentence) and (silent or not _COMPARISON.search(sentence)):
            return Kind.TECHNIQUE
        if silent and _COMPARISON.search(sentence):
            return Kind.COMPARISON
        if silent and (_REMNANT.search(sentence) or len(_WORD.findall(sentence)) < 2):
            return Kind.REMNANT
        return Kind.STATEMENT
    if _MEANING.search(sentence):
        return Kind.INTERPRETATION
    return Kind.STATEMENT
