"""Report text as strings: redaction, cleaning, language, and responses."""

from __future__ import annotations

import pytest

from echo_pl.reports.cleaning import clean, language_of
from echo_pl.reports.redact import MARK, redact, redact_report
from echo_pl.reports.report import RawReport
from echo_pl.reports.response import FORMS, format_response, parse_response, report_form
from echo_pl.structs import ReportText


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("since 2021-03-04", "date"),
        ("since 3/4/2021", "date"),
        ("since 04.03.2021", "date"),
        ("since March 4, 2021", "date"),
        ("since the 4th of March 2021", "date"),
        ("于2021年3月4日", "date"),
        ("at 10:15 am", "time"),
        ("at 5 p.m.", "time"),
        ("by Dr. Jane Roe", "name"),
        ("Mrs. O'Neil", "name"),
        ("John Doe, M.D.", "name"),
        ("姓名：王小明", "name"),
        ("MRN: 1234567", "id"),
        ("accession no. A-998877", "id"),
        ("call 555-123-4567", "id"),
        ("jane@example.org", "id"),
        ("病历号：A12345", "id"),
    ],
)
def test_identifying_text_is_removed_and_counted(text, kind):
    done = redact(f"Nodule, {text}, unchanged.")
    assert done.counts == {kind: 1}
    assert MARK in done.text
    assert "Nodule" in done.text
    assert "unchanged" in done.text


@pytest.mark.parametrize(
    "text",
    [
        "A 1.2 x 3.4 cm mass at T11-12, 5 mm from the 4th rib.",
        "Stage 3/4 change, 50% loss of height.",
        "May represent scarring.",
        "The cardiothoracic ratio is 16.2/24.7.",
        "Doctor was notified.",
        "右侧第5肋骨骨折，直径12mm。",
    ],
)
def test_measurements_stay(text):
    assert redact(text).text == text


def test_a_report_is_redacted_in_all_sections():
    raw = RawReport(findings="Seen 2020-01-02.", impression="Told Dr. Roe.", comparison="3 May 2019", technique="PA")
    done, counts = redact_report(raw)
    assert counts == {"date": 2, "name": 1}
    assert (done.comparison, done.technique) == (MARK, "PA")
    assert clean(done.findings).text == "Seen."


@pytest.mark.parametrize(
    ("text", "expected", "kind"),
    [
        ("Lungs<br>clear", "Lungs clear", "html"),
        ("Heart &gt; normal", "Heart > normal", "html"),
        ("Heart\tis\u00a0 normal", "Heart is normal", "whitespace"),
        ("The patient\u00e2\u20ac\u2122s heart", "The patient's heart", "encoding"),
        ("Clear.<style>p {color: red}</style> <Script src=x>a = 1 < 2</script>Normal.", "Clear. Normal.", "html"),
        ("Nodule since XXXX.", "Nodule.", "deidentification"),
        ("Nodule in the left XXXX.", "Nodule in the left.", "deidentification"),
        ("Seen on [**2101-1-1**].", "Seen.", "deidentification"),
    ],
)
def test_cleaned_and_counted(text, expected, kind):
    done = clean(text)
    assert done.text == expected
    assert done.counts[kind] >= 1


def test_clean_text_stays():
    text = "Heart < 50 % of the chest; p < 0.05 and a > b.\n\nLungs clear."
    assert clean(text).text == text
    assert not clean(text).counts


@pytest.mark.parametrize(
    ("text", "language"), [("The lungs are clear.", "en"), ("双肺清晰。PICC在位。", "zh"), ("Cardiomegaly.", "en")]
)
def test_languages(text, language):
    assert language_of(text) == language


@pytest.mark.parametrize("language", list(FORMS))
def test_a_response_is_parsed_back(language):
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
def test_any_text_can_be_parsed(text, findings, impression):
    assert parse_response(text) == ReportText(findings=findings, impression=impression)


def test_unknown_language():
    with pytest.raises(ValueError, match="language must be one of"):
        report_form("de")
