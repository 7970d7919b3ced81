"""Response texts: written in two languages, parsed back whatever they are."""

from __future__ import annotations

import pytest

from echo_pl.reports.response import FORMS, format_response, parse_response, report_form
from echo_pl.structs import ReportText


@pytest.mark.parametrize("language", list(FORMS))
def test_round_trip(language):
    report = ReportText(findings="the lungs are clear. no nodule.", impression="normal chest.")
    assert parse_response(format_response(report, language)) == report


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        ("", "", ""),
        ("Findings:", "", ""),
        ("lungs clear", "lungs clear", ""),
        ("Findings: lungs clear", "lungs clear", ""),
        ("lungs clear Impression: normal", "lungs clear", "normal"),
        ("Impression: normal", "", "normal"),
        ("Findings: a Impression: b Impression: c", "a", "b Impression: c"),
        ("所见：肺野清晰", "肺野清晰", ""),
    ],
)
def test_anything_can_be_parsed(text, findings, impression):
    assert parse_response(text) == ReportText(findings=findings, impression=impression)


def test_unknown_language():
    with pytest.raises(ValueError, match="language must be one of"):
        report_form("de")
