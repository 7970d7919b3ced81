"""Sections of a radiology report by its headings: findings, impression, indication, comparison, technique.

A heading begins a line and ends with a colon. Sub-headings inside findings and impression ("LUNGS:") remain text. Without a
heading for findings, the paragraphs under no heading are the findings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from echo_pl.reports.report import RawReport

_BODY: Final = "body"
_LEFT_OUT: Final = "left out"
_HEADINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "findings": ("findings", "finding", "findings and impression", "findings/impression", "findings impression", "report"),
    "impression": ("impression", "impressions", "conclusion", "conclusions", "opinion", "summary"),
    "indication": (
        *("indication", "indications", "clinical indication", "clinical history", "clinical information", "history"),
        *("reason for exam", "reason for examination", "reason for study", "reason for the exam", "reason for the examination"),
        "patient history",
    ),
    "comparison": ("comparison", "comparisons", "comparison studies", "prior study", "prior studies", "comparison exam"),
    "technique": ("technique", "techniques", "procedure", "procedure comments"),
    _LEFT_OUT: (
        *("exam", "examination", "exam type", "type of examination", "study", "date", "wet read", "wet read version", "addendum"),
        *("notification", "notifications", "recommendation", "recommendations", "recommendation(s)", "signed by", "dictated by"),
        *("accession number", "end of impression", "narrative"),
    ),
}
_SECTION_OF: Final = {name: section for section, names in _HEADINGS.items() for name in names}
_SHORT: Final = ("indication", "comparison", "technique", _LEFT_OUT)
"""Sections of one paragraph; after an empty line the body continues."""
_HEADING: Final = re.compile(r"[ \t]*([A-Za-z][A-Za-z /(),&-]{1,60}?)[ \t]*:(.*)", re.DOTALL)
_FINAL: Final = re.compile(r"^[ \t]*FINAL REPORT[ \t]*$", re.MULTILINE)
_RULE: Final = re.compile(r"[\s_*=-]*")


def split_sections(text: str) -> RawReport:
    """Divide a report into sections.

    Everything before the line ``FINAL REPORT`` of MIMIC-CXR, a preliminary reading or an addendum, is omitted.

    >>> report = split_sections("INDICATION: Cough.\\n\\nFINDINGS:\\nClear lungs.\\n\\nIMPRESSION: Normal.")
    >>> report.findings, report.impression, report.indication
    ('Clear lungs.', 'Normal.', 'Cough.')
    """
    final = list(_FINAL.finditer(text))
    parts: dict[str, list[str]] = {}
    headed = False
    for section, paragraph in _paragraphs(text[final[-1].end() :] if final else text):
        headed = headed or section not in (_BODY, "title")
        parts.setdefault(section, []).append(paragraph)
    joined = {section: " ".join(paragraphs) for section, paragraphs in parts.items()}
    body = joined.get(_BODY, "")
    if not headed:
        body = f"{joined.get('title', '')} {body}".strip()
    return RawReport(
        findings=joined.get("findings") or body,
        impression=joined.get("impression", ""),
        indication=joined.get("indication", ""),
        comparison=joined.get("comparison", ""),
        technique=joined.get("technique", ""),
    )


def _paragraphs(text: str) -> Iterator[tuple[str, str]]:
    """Yield (section, paragraph); the section is ``title`` before the first heading."""
    section, held = "title", list[str]()
    for line in (*text.splitlines(), ""):
        if _RULE.fullmatch(line):
            if held:
                yield section, " ".join(held)
                held = []
                section = _BODY if section in _SHORT else section
            continue
        heading, rest = _heading(line, section)
        if heading:
            if held:
                yield section, " ".join(held)
            section, held = heading, []
        if words := " ".join(rest.split()):
            held.append(words)


def _heading(line: str, section: str) -> tuple[str, str]:
    """Section that a line opens, if any, and the rest of the line after its heading."""
    match = _HEADING.fullmatch(line)
    if match is None:
        return "", line
    name, rest = match.groups()
    if known := _SECTION_OF.get(" ".join(name.lower().split())):
        return known, rest
    # "CHEST, PA AND LATERAL:" opens the text itself, and may be a part of it; inside findings "LUNGS:" is one.
    if name.isupper() and section not in ("findings", "impression", _BODY):
        return _BODY, line
    return "", line
