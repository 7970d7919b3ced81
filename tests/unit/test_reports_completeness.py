"""The completeness check and the plain comparison: each kind of fault is found, and none in a faithful report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from echo_pl.reports.canonical import canonical_in_chinese
from echo_pl.reports.completeness import CompletenessCheck
from echo_pl.reports.plain_comparison import plain_violations
from echo_pl.reports.report import NormalizedReport, RawReport, Statement
from echo_pl.reports.rules import RuleNormalizer

RAW = RawReport(
    findings=(
        "Two views. The heart is normal in size. There is a 12 mm nodule in the right upper lobe. Small left effusion. "
        "No pneumothorax. The basal shadow may represent pneumonia. A left pacemaker is in place. "
        "Odd loop of thread in the left neck."
    ),
    impression="1. Right upper lobe nodule.",
)
Fault = Callable[[NormalizedReport], NormalizedReport]


def in_chinese(report: NormalizedReport, translate: Callable[[str], str]) -> NormalizedReport:
    def render(text: str) -> str:
        return canonical_in_chinese(text) or translate(text)

    statements = tuple(replace(one, text=render(one.text)) for one in report.statements)
    return replace(report, statements=statements, impression=render(report.impression), language="zh")


def test_a_faithful_report_has_no_problem():
    assert CompletenessCheck(verbatim=True).problems(RAW, RuleNormalizer().normalize(RAW)) == []


def without(words: str) -> Fault:
    return lambda report: replace(report, statements=tuple(one for one in report.statements if words not in one.text))


def swapped(old: str, new: str) -> Fault:
    def change(report: NormalizedReport) -> NormalizedReport:
        assert any(old in one.text for one in report.statements)
        statements = tuple(replace(one, text=one.text.replace(old, new)) for one in report.statements)
        return replace(report, statements=statements)

    return change


def with_(section: str, text: str, *, imputed: bool = False) -> Fault:
    return lambda report: replace(report, statements=(*report.statements, Statement(section=section, text=text, imputed=imputed)))


FAULTS: dict[str, tuple[Fault, str, str]] = {
    "drops a finding": (without("effusion"), "finding_lost", "effusion"),
    "drops what is in doubt": (without("pneumonia"), "finding_lost", "pneumonia"),
    "drops a device": (without("pacemaker"), "device_lost", "pacemaker"),
    "drops a denial": (without("pneumothorax"), "denial_lost", "pneumothorax"),
    "drops a normal part": (without("The heart"), "denial_lost", "cardiomegaly"),
    "drops words of no table": (without("thread"), "words_lost", "thread"),
    "drops a region": (without("costophrenic"), "", ""),
    "flips a side": (swapped("left effusion", "right effusion"), "side_changed", "effusion"),
    "drops a side": (swapped("left effusion", "effusion"), "side_changed", "effusion"),
    "moves to another lobe": (swapped("right upper lobe", "right lower lobe"), "place_changed", "nodule"),
    "changes a number": (swapped("12 mm", "21 mm"), "number_lost", "12"),
    "invents a number": (swapped("Small left", "Small 3 cm left"), "number_invented", "3"),
    "drops a number": (swapped("12 mm ", ""), "number_lost", "12"),
    "is sure of what is in doubt": (swapped("may represent", "represents"), "certainty_changed", "pneumonia"),
    "doubts what is sure": (swapped("Small left effusion", "Possible small left effusion"), "certainty_changed", "effusion"),
    "denies what is there": (swapped("Small left effusion", "No left effusion"), "finding_lost", "effusion"),
    "affirms what is denied": (swapped("There is no pneumothorax", "There is a pneumothorax"), "finding_invented", "pneumothorax"),
    "invents a finding": (with_("bones", "Healed rib fracture."), "finding_invented", "fracture"),
    "invents a device": (with_("mediastinum", "A stent is seen."), "device_invented", "stent"),
    "invents a denial": (with_("bones", "There is no scoliosis."), "denial_invented", "scoliosis"),
    "fills against a finding": (with_("diaphragm", "There is no pleural effusion.", imputed=True), "contradiction", "effusion"),
    "fills with a finding": (with_("bones", "There is a fracture.", imputed=True), "finding_invented", "fracture"),
    "invents words": (with_("other", "Strange zebra."), "words_invented", "zebra"),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in FAULTS if FAULTS[name][1]])
def test_a_faulty_engine_is_caught(name):
    fault, problem, detail = FAULTS[name]
    good = RuleNormalizer().normalize(RAW)
    if name in ("moves to another lobe",):
        good = replace(good, impression=good.impression.replace("upper", "lower"))
    found = CompletenessCheck(verbatim=True).problems(RAW, fault(good))
    assert (problem, detail) in {(one.name, one.detail) for one in found}


def test_a_region_that_is_not_stated_is_named():
    good = RuleNormalizer().normalize(RAW)
    for region in {one.section for one in good.statements}:
        broken = replace(good, statements=tuple(one for one in good.statements if one.section != region))
        missing = [one.detail for one in CompletenessCheck().problems(RAW, broken) if one.name == "region_missing"]
        assert missing == ([] if region == "other" else [region])


def test_one_of_two_like_findings_is_missed():
    raw = RawReport(findings="Nodule in the left apex. Nodule in the right base.", impression="Two nodules.")
    good = RuleNormalizer().normalize(raw)
    check = CompletenessCheck()
    assert check.problems(raw, good) == []
    assert {one.name for one in check.problems(raw, without("apex")(good))} >= {"claim_lost"}


def test_a_fault_in_the_impression_is_caught():
    good = RuleNormalizer().normalize(RAW)
    broken = replace(good, impression="Left upper lobe nodule.")
    assert {"side_changed", "claim_invented"} <= {one.name for one in CompletenessCheck().problems(RAW, broken)}


def test_an_engine_that_rewords_passes_without_verbatim():
    good = RuleNormalizer().normalize(RAW)
    reworded = swapped("Small left effusion", "Minor effusion on the left")(good)
    assert CompletenessCheck().problems(RAW, reworded) == []
    assert {one.name for one in CompletenessCheck(verbatim=True).problems(RAW, reworded)} == {"words_invented", "words_lost"}


def test_numbers_of_technique_may_go():
    raw = RawReport(findings="3 images were obtained. Lungs are clear.", impression="Normal.")
    assert CompletenessCheck(verbatim=True).problems(raw, RuleNormalizer().normalize(raw)) == []


def test_details_hold_no_sentences():
    found = CompletenessCheck(verbatim=True).problems(RAW, without("thread")(RuleNormalizer().normalize(RAW)))
    assert found
    assert all(" " not in one.detail for one in found if one.name.startswith("words_"))


def test_a_translation_is_checked_across_languages():
    raw = RawReport(findings="Lungs are clear. Small left effusion.", impression="Left effusion.")
    chinese = {"Small left effusion.": "左侧少量胸腔积液。", "Left effusion.": "左侧胸腔积液。"}
    english = RuleNormalizer().normalize(raw)
    check = CompletenessCheck(verbatim=False)
    assert check.problems(raw, in_chinese(english, chinese.__getitem__)) == []
    flipped = in_chinese(english, lambda text: chinese[text].replace("左", "右"))
    assert {one.name for one in check.problems(raw, flipped)} >= {"side_changed"}


def test_a_chinese_engine_that_flips_a_side_is_caught():
    raw = RawReport(findings="左侧胸腔积液。未见气胸。", impression="左侧胸腔积液。")
    good = RuleNormalizer().normalize(raw)
    check = CompletenessCheck()
    assert check.problems(raw, good) == []
    assert check.problems(raw, swapped("左侧胸腔积液", "右侧胸腔积液")(good))
    assert check.problems(raw, without("气胸")(good))


PLAIN = RawReport(
    findings=(
        "2 images. The heart is normal in size. There is a 12 mm nodule in the right upper lobe. Small left effusion. "
        "No pneumothorax and no focal consolidation. A pacemaker is in place. The film of XXXX was called at 4 pm."
    ),
    impression="1. Right upper lobe nodule 2. Small effusion.",
)


@pytest.mark.parametrize(
    ("fault", "violation"),
    [
        (swapped("12 mm", "21 mm"), ("number_lost", "12")),
        (swapped("12 mm", "21 mm"), ("number_invented", "21")),
        (swapped("Small left", "Small right"), ("side_lost", "left effusion")),
        (swapped("Small left", "Small right"), ("side_invented", "right effusion")),
        (swapped("A pacemaker is in place", "It is in place"), ("word_lost", "pacemaker")),
        (swapped("A pacemaker is", "There is no pacemaker"), ("word_lost", "pacemaker")),
        (swapped("A pacemaker", "A fracture and a pacemaker"), ("word_invented", "fractur")),
        (swapped("There is no pneumothorax", "There is a pneumothorax"), ("word_affirmed", "pneumothora")),
    ],
)
def test_the_plain_comparison_finds_every_fault(fault, violation):
    report = RuleNormalizer().normalize(PLAIN)
    assert plain_violations(PLAIN, report) == []
    assert violation in plain_violations(PLAIN, fault(report))


def test_the_plain_comparison_ignores_the_numbers_of_a_list_alone():
    report = RuleNormalizer().normalize(PLAIN)
    wrong = replace(report, impression="Right upper lobe nodule 7. Small effusion.")
    assert plain_violations(PLAIN, wrong) == [("number_invented", "7")]
