"""The canonical sentences of a normalized report: negatives, normal parts, and what fills a region of which nothing was said.

English and Chinese, side by side. A filling is chosen so that nothing in the report speaks against it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from echo_pl.reports.anatomy import ANATOMY
from echo_pl.reports.chinese_terms import NORMAL_PARTS_ZH, NOUNS_ZH, PART_NOUNS_ZH, REGION_NORMAL_ZH, REGION_TITLES_ZH
from echo_pl.reports.concepts import BY_NAME
from echo_pl.reports.regions import REGIONS
from echo_pl.reports.response import Language

NO_ABNORMALITY: Final[dict[Language, str]] = {
    "en": "No acute cardiopulmonary abnormality.",
    "zh": "心肺未见明显异常。",
}
"""Impression of a report that has none and no finding."""
TITLES: Final[dict[Language, dict[str, str]]] = {
    "en": {region.name: region.title for region in REGIONS},
    "zh": dict(REGION_TITLES_ZH),
}

_SINGULAR = frozenset({"thorax", "heart"})
_SKEWED = frozenset(
    {"scoliosis", "volume_loss", "lung_resection", "mastectomy", "chest_wall_deformity", "mediastinal_shift", "kyphosis"}
)
_FILLINGS: Final[dict[str, tuple[tuple[int, frozenset[str]], ...]]] = {
    "thorax": (
        (0, _SKEWED | {"pneumothorax", "breast_implant"}),
        (1, frozenset({"mastectomy", "chest_wall_deformity", "fracture", "deformity", "subcutaneous_emphysema", "lung_resection"})),
    ),
    "mediastinum": (
        (0, frozenset({"mediastinal_shift", "mediastinal_widening", "volume_loss", "lung_resection", "scoliosis", "goiter"})),
        (1, frozenset({"mediastinal_widening", "aortic_dilation", "lymphadenopathy", "goiter", "mass"})),
    ),
    "lungs": (
        (0, frozenset(one for one, concept in BY_NAME.items() if concept.region == "lungs") | {"heart_failure", "sarcoidosis"}),
    ),
    "heart": ((0, frozenset({"cardiomegaly", "heart_failure", "pericardial_effusion"})),),
    "hila": (
        (0, frozenset({"hilar_enlargement", "lymphadenopathy", "sarcoidosis", "pulmonary_hypertension", "granuloma"})),
        (1, frozenset({"hilar_enlargement", "lymphadenopathy", "sarcoidosis", "pulmonary_hypertension"})),
    ),
    "diaphragm": (
        (0, frozenset({"effusion", "costophrenic_blunting", "pleural_thickening", "eventration"})),
        (1, frozenset({"effusion"})),
    ),
    "bones": (
        (0, frozenset(one for one, concept in BY_NAME.items() if concept.region == "bones")),
        (1, frozenset({"fracture", "vertebral_deformity", "dislocation"})),
    ),
}
"""Region -> its sentences in ``regions`` by number, each with the findings that speak against it."""


def sentence(text: str) -> str:
    """With a capital and a full stop.

    >>> sentence("there is no fracture")
    'There is no fracture.'
    """
    text = text.strip().strip(",;:").strip()
    if not text:
        return ""
    if not text[0].isascii():
        return text if text.endswith(("。", "！", "？")) else text + "。"
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def normal_part(part: str, language: Language = "en") -> str:
    """Canonical sentence that a part is normal; empty where there is none."""
    return NORMAL_PARTS_ZH.get(part, "") if language == "zh" else ANATOMY[part].normal


def no_abnormality_of(part: str, qualifiers: Sequence[str] = (), language: Language = "en") -> str:
    """Canonical sentence that a part has no abnormality, of the kind that the qualifiers say ("acute")."""
    if language == "zh":
        return f"{PART_NOUNS_ZH[part]}未见异常。" if part in PART_NOUNS_ZH else ""
    return sentence(" ".join(("there is no", *qualifiers, ANATOMY[part].noun, "abnormality")))


def negatives(nouns: Sequence[str], language: Language = "en") -> str:
    """One sentence that denies several things; those with the fewest words first, so that a qualifier is of one noun only.

    >>> negatives(["large pleural effusion", "free air"])
    'There is no free air or large pleural effusion.'
    """
    ordered = sorted(dict.fromkeys(nouns), key=lambda noun: noun.count(" "))
    if language == "zh":
        return sentence("未见" + "、".join(ordered[:-1]) + ("及" if ordered[:-1] else "") + ordered[-1])
    last = f"{', '.join(ordered[:-1])} or {ordered[-1]}" if len(ordered) > 1 else ordered[-1]
    return sentence(f"there is no {last}")


def noun(concept: str, language: Language = "en") -> str:
    """What is denied in a canonical negative."""
    return NOUNS_ZH[concept] if language == "zh" else BY_NAME[concept].noun


def filling(region: str, present: Collection[str], language: Language = "en") -> str:
    """What is said of a region that the report does not mention.

    Args:
        region: its name.
        present: findings that the report has anywhere, certain or not.
        language: of the report.
    """
    table = next(one for one in REGIONS if one.name == region)
    for number, against in _FILLINGS[region]:
        if not against.intersection(present):
            return sentence(REGION_NORMAL_ZH[region][number] if language == "zh" else table.normal[number])
    if language == "zh":
        return f"{REGION_TITLES_ZH[region]}无进一步描述。"
    return f"The {table.title} {'is' if region in _SINGULAR else 'are'} not described further."
