"""Prompt and response of a study as text: a report in its own language, or a general image-text sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from echo_pl.data.store.study import Study, Version
from echo_pl.reports.response import FORMS, format_response, report_form
from echo_pl.structs import ReportText

GENERAL: Final = "general"
"""``meta["kind"]`` of a sample that is not a chest X-ray: its text is stored as findings, its prompt in ``meta["prompt"]``."""
GENERAL_PROMPT: Final = "Describe this image."
"""Prompt of such a sample without its own."""
CONTROL: Final = "<|"
"""Start of a tokenizer's control tokens. Prompts are tokenized with these, so the prompt of a sample must contain none."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question and its answer."""

    instruction: str
    response: str
    report: ReportText
    """The answer in its two fields."""


def request_of(study: Study, *, version: Version, language: str) -> Request:
    """Return the prompt and the response of a study.

    A normalized report with a language (``meta["language"]``) is requested in that language.

    Args:
        study: any.
        version: which of its reports is the answer; a general sample has one only.
        language: of reports that do not say.

    Raises:
        ValueError: the study has no such version, it is in a language that has no form, or its prompt has a control token.

    >>> from PIL import Image
    >>> study = Study(key="a", images=(Image.new("L", (8, 8)),), normalized=ReportText(findings="双肺清晰。", impression="正常。"),
    ...               meta={"language": "zh"})
    >>> request_of(study, version="normalized", language="en").response
    '所见：双肺清晰。 结论：正常。'
    """
    if study.meta.get("kind") == GENERAL:
        text, prompt = study.normalized, study.meta.get("prompt", GENERAL_PROMPT)
        if CONTROL in prompt:
            raise ValueError(f"the prompt of sample {study.key} has a control token")
        return Request(instruction=prompt, response=text.findings, report=text)
    report = study.report(version)
    own = study.meta.get("language", "") if version == "normalized" else ""
    form = own if own in FORMS else language
    return Request(instruction=report_form(form).instruction, response=format_response(report, form), report=report)
