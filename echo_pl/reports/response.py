"""Text of the instruction and of a response, in English and Chinese (docs/explain/data.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from echo_pl.structs import ReportText

Language = Literal["en", "zh"]


@dataclass(frozen=True, kw_only=True)
class ReportForm:
    """Instruction and headings of one language."""

    instruction: str
    findings: str
    """Heading of the findings section."""
    impression: str
    """Heading of the impression section."""
    space: str
    """Separator of a heading and its text."""


FORMS: dict[Language, ReportForm] = {
    "en": ReportForm(
        instruction=("Review this chest X-ray and write a report. Use this format: Findings: {}, Impression: {}."),
        findings="Findings:",
        impression="Impression:",
        space=" ",
    ),
    "zh": ReportForm(
        instruction=("这是一组胸部X光图像，请生成一份医学报告，包括所见和结论。以以下格式返回报告：所见：{} 结论：{}。"),
        findings="所见：",
        impression="结论：",
        space="",
    ),
}


def report_form(language: str) -> ReportForm:
    """Return the form of a language; raise ValueError if it has none."""
    for name, form in FORMS.items():
        if name == language:
            return form
    raise ValueError(f"language must be one of {sorted(FORMS)}, got {language!r}")


def format_response(report: ReportText, language: str = "en") -> str:
    """Format a report as one response.

    >>> format_response(ReportText(findings="the lungs are clear.", impression="normal chest."))
    'Findings: the lungs are clear. Impression: normal chest.'
    """
    form = report_form(language)
    return f"{form.findings}{form.space}{report.findings} {form.impression}{form.space}{report.impression}"


def parse_response(text: str) -> ReportText:
    """Split a response into its two fields; text without headings is findings. Never raises.

    >>> parse_response("Findings: the lungs are clear. Impression: normal chest.").impression
    'normal chest.'
    >>> parse_response("the lungs are")
    ReportText(findings='the lungs are', impression='')
    """
    for form in FORMS.values():
        head, found, impression = text.partition(form.impression)
        if found or text.lstrip().startswith(form.findings):
            return ReportText(findings=head.strip().removeprefix(form.findings).strip(), impression=impression.strip())
    return ReportText(findings=text.strip(), impression="")
