"""What a language model is told to do with a report (METHOD.md 1), and the form its answer must have.

The report goes in as numbered pieces, and every sentence of the answer names the pieces it was made of: so it can be seen that
nothing vanished and nothing came from nowhere. Regions that a report does not mention are left empty by the model; the canonical
negative is ours. Knows strings only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from echo_pl.reports.regions import REGION_NAMES, REGIONS
from echo_pl.reports.report import OTHER, SECTIONS, RawReport
from echo_pl.reports.response import Language

PROMPT_VERSION: Final = "1"
"""To be raised with every change of what a model is sent: answers to another version are not used."""

IMPRESSION: Final = "impression"
DROPPED: Final = "dropped"
DROP_REASONS: Final = ("technique", "comparison", "communication", "duplicate", "empty")

CANONICAL: Final[Mapping[Language, Mapping[str, str]]] = {
    "en": {
        "thorax": "The thorax is unremarkable.",
        "mediastinum": "The mediastinum and trachea are unremarkable.",
        "lungs": "The lung fields are unremarkable.",
        "heart": "The cardiac silhouette is unremarkable.",
        "hila": "The hila are unremarkable.",
        "diaphragm": "The diaphragm and costophrenic angles are unremarkable.",
        "bones": "The bony structures are unremarkable.",
    },
    "zh": {
        "thorax": "胸廓未见明显异常。",
        "mediastinum": "纵隔及气管未见明显异常。",
        "lungs": "肺野未见明显异常。",
        "heart": "心影未见明显异常。",
        "hila": "肺门未见明显异常。",
        "diaphragm": "膈肌及肋膈角未见明显异常。",
        "bones": "骨质未见明显异常。",
    },
}
"""What is said of a region that the original does not mention."""

_BELONGS: Final[Mapping[str, str]] = {
    "thorax": "chest wall, soft tissues, breasts, shape and symmetry of the chest",
    "mediastinum": "mediastinum, aorta and great vessels, trachea and tubes in it, oesophagus and tubes in it",
    "lungs": "lungs, airways, interstitium, pulmonary vessels, opacities, nodules, atelectasis, lung volumes, pneumothorax",
    "heart": "heart size and contour, pacemakers, valves, pericardium",
    "hila": "hila, hilar vessels and lymph nodes",
    "diaphragm": "diaphragm, costophrenic angles, pleural effusion and thickening, what lies below the diaphragm",
    "bones": "ribs, clavicles, shoulders, spine, sternum, and metal in them",
    OTHER: "what belongs to none of the regions above; lines, drains, clips and other devices that lie in none of them",
}

_LANGUAGES: Final[Mapping[Language, str]] = {
    "en": "Write all sentences in English, each beginning with a capital letter and ending with a full stop.",
    "zh": (
        "Write all sentences in Simplified Chinese, each ending with 。. Left is 左, right is 右, bilateral is 双侧. Digits stay "
        "digits; abbreviations of devices and of vertebrae (PICC, T8) stay as they are."
    ),
}

_RULES: Final = """\
You put chest X-ray reports into a fixed form. You see no image. You add no finding, and you leave none out.

The report comes in numbered pieces: F1, F2 ... are its findings, I1, I2 ... its impression.

Answer with one JSON object and nothing else. Its keys, in this order:
{regions}
- "impression": the reader's conclusions.
- "dropped": pieces, or parts of them, that say nothing of the patient's chest.

Each region is {{"mentioned": true or false, "sentences": [...]}}. "other" and "impression" are lists of sentences. A sentence is
{{"text": "...", "from": ["F1"]}}, where "from" names every piece it was made of. "dropped" is a list of
{{"from": "F3", "reason": "..."}}; a reason is one of {reasons}: how the images were taken; that there are older ones, or none;
whom the reader told; said before; no words at all.

Rules
1. Every piece is named at least once, under a region, "other", "impression" or "dropped".
2. A piece that speaks of several regions is divided among them, and each of its parts stands in one place only.
3. Findings that are present keep their words: place, side, size, number, severity, certainty, and change over time. So do
   devices and where their tips are. Write numbers and units as they stand.
4. Findings that are absent or normal stay absent or normal, each of them, in a short sentence: "There is no pleural effusion."
5. A doubtful finding stays doubtful: "possible" is neither "present" nor "absent".
6. A region of which no piece speaks has "mentioned": false and no sentences. Do not write that it is normal.
7. Interpretations in the findings ("consistent with pneumonia", "suggests heart failure") go to the impression, with their
   uncertainty; what is seen stays under its region.
8. A finding that stands in the impression only is also written under its region.
9. If there are no I pieces, write one impression sentence that sums the findings up, and name the pieces it was made of.
10. Marks in the place of removed names and dates (XXXX, ___, [** **]) are left out, and with them words that lose their sense.
11. {language}
"""

_EXAMPLE: Final = """\

Example. Pieces:
F1: PA and lateral views were taken.
F2: Stable 4 mm granuloma in the right apex, no effusion or pneumothorax.
F3: Cardiomegaly, suggesting heart failure.
I1: Possible early heart failure.
Answer:
{"thorax": {"mentioned": false, "sentences": []}, "mediastinum": {"mentioned": false, "sentences": []}, \
"lungs": {"mentioned": true, "sentences": [{"text": "Stable 4 mm granuloma in the right apex.", "from": ["F2"]}, \
{"text": "There is no pneumothorax.", "from": ["F2"]}]}, \
"heart": {"mentioned": true, "sentences": [{"text": "Cardiomegaly.", "from": ["F3"]}]}, \
"hila": {"mentioned": false, "sentences": []}, \
"diaphragm": {"mentioned": true, "sentences": [{"text": "There is no pleural effusion.", "from": ["F2"]}]}, \
"bones": {"mentioned": false, "sentences": []}, "other": [], \
"impression": [{"text": "Possible early heart failure.", "from": ["F3", "I1"]}], \
"dropped": [{"from": "F1", "reason": "technique"}]}
"""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(])|(?<=[。！？；])|\n+")


def pieces_of(report: RawReport) -> dict[str, str]:
    """Findings and impression in numbered pieces; together they are all of their words.

    >>> pieces_of(RawReport(findings="Clear lungs. No effusion.", impression="Normal."))
    {'F1': 'Clear lungs.', 'F2': 'No effusion.', 'I1': 'Normal.'}
    """
    found: dict[str, str] = {}
    for letter, text in (("F", report.findings), ("I", report.impression)):
        parts = (" ".join(part.split()) for part in _SENTENCE_END.split(text))
        found |= {f"{letter}{i}": part for i, part in enumerate((part for part in parts if part), start=1)}
    return found


def is_impression(piece: str) -> bool:
    """Whether a piece of that name is of the impression."""
    return piece.startswith("I")


def system_message(language: Language) -> str:
    """What the model is told once and for all."""
    titles = {region.name: region.title for region in REGIONS}
    regions = "\n".join(f'- "{name}": {titles.get(name, "other")}: {belongs}.' for name, belongs in _BELONGS.items())
    return _RULES.format(regions=regions, reasons=", ".join(DROP_REASONS), language=_LANGUAGES[language]) + _EXAMPLE


def user_message(pieces: Mapping[str, str]) -> str:
    """One report."""
    return "Pieces:\n" + "\n".join(f"{name}: {text}" for name, text in pieces.items()) + "\nAnswer:"


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(properties), "properties": dict(properties)}


def answer_schema() -> dict[str, Any]:
    """The answer's form as a JSON schema, the same for every report."""
    name = {"type": "string", "pattern": "^[FI][0-9]+$"}
    sentence = _closed({"text": {"type": "string"}, "from": {"type": "array", "items": name}})
    sentences = {"type": "array", "items": sentence}
    region = _closed({"mentioned": {"type": "boolean"}, "sentences": sentences})
    dropped = {"type": "array", "items": _closed({"from": name, "reason": {"type": "string", "enum": list(DROP_REASONS)}})}
    slots = {section: sentences if section == OTHER else region for section in SECTIONS}
    assert list(slots) == [*REGION_NAMES, OTHER]
    return _closed({**slots, IMPRESSION: sentences, DROPPED: dropped})
