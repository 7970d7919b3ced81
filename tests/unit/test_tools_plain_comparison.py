"""The comparison of words as they stand: it sees each fault, and none where there is none, without any table of the engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from echo_pl.reports.plain_comparison import plain_violations
from echo_pl.reports.report import RawReport
from echo_pl.reports.rules import RuleNormalizer

RAW = RawReport(
    findings=(
        "2 images. The heart is normal in size. There is a 12 mm nodule in the right upper lobe. Small left effusion. "
        "No pneumothorax and no focal consolidation. A pacemaker is in place. The film of XXXX was called at 4 pm."
    ),
    impression="1. Right upper lobe nodule 2. Small effusion.",
)


def test_a_faithful_report_has_none():
    assert plain_violations(RAW, RuleNormalizer().normalize(RAW)) == []


@pytest.mark.parametrize(
    ("old", "new", "violation"),
    [
        ("12 mm", "21 mm", ("number_lost", "12")),
        ("12 mm", "21 mm", ("number_invented", "21")),
        ("Small left", "Small right", ("side_lost", "left effusion")),
        ("Small left", "Small right", ("side_invented", "right effusion")),
        ("A pacemaker is in place", "It is in place", ("word_lost", "pacemaker")),
        ("A pacemaker is", "There is no pacemaker", ("word_lost", "pacemaker")),
        ("A pacemaker", "A fracture and a pacemaker", ("word_invented", "fractur")),
        ("There is no pneumothorax", "There is a pneumothorax", ("word_affirmed", "pneumothora")),
    ],
)
def test_every_fault_is_seen(old, new, violation):
    report = RuleNormalizer().normalize(RAW)
    assert any(old in one.text for one in report.statements)
    statements = tuple(replace(one, text=one.text.replace(old, new)) for one in report.statements)
    assert violation in plain_violations(RAW, replace(report, statements=statements))


def test_a_number_of_a_list_that_is_told_is_seen():
    report = RuleNormalizer().normalize(RAW)
    assert ("number_invented", "2") not in plain_violations(RAW, report)
    wrong = replace(report, impression="Right upper lobe nodule 7. Small effusion.")
    assert plain_violations(RAW, wrong) == [("number_invented", "7")]
