"""Chinese: reading, normalizing, and canonical sentences rendered from English."""

from __future__ import annotations

import pytest

from echo_pl.reports.canonical import canonical_in_chinese
from echo_pl.reports.completeness import CompletenessCheck
from echo_pl.reports.labeller import Labeller
from echo_pl.reports.mention import Status
from echo_pl.reports.regions import REGION_NAMES, REGIONS
from echo_pl.reports.report import RawReport
from echo_pl.reports.rules import RuleNormalizer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("右侧胸腔积液。", {"effusion": ("positive", {"right"})}),
        ("未见实变、结节及气胸。",
         {"consolidation": ("negative", set()), "nodule": ("negative", set()), "pneumothorax": ("negative", set())}),
        ("左下肺斑片影，考虑肺炎。", {"opacity": ("positive", {"left"}), "pneumonia": ("uncertain", set())}),
        ("右肺结节，肿瘤待排。", {"nodule": ("positive", {"right"}), "mass": ("uncertain", set())}),
        ("心影增大。", {"cardiomegaly": ("positive", set())}),
        ("左侧气胸已吸收。", {"pneumothorax": ("negative", {"left"})}),
        ("左侧胸腔积液，右侧气胸。", {"effusion": ("positive", {"left"}), "pneumothorax": ("positive", {"right"})}),
        ("纵隔未见增宽。", {"mediastinal_widening": ("negative", set())}),
    ],
)  # fmt: skip
def test_labels(text, expected):
    labels = Labeller().label(text)
    found = {name: (one.status.value, set(one.sides)) for name, one in labels.items() if one.status is not Status.ABSENT}
    assert found == expected


def test_a_chinese_report():
    raw = RawReport(
        findings="胸廓对称，气管居中。双肺野清晰，未见实变。心影大小正常。右侧少量胸腔积液。所见金属扣影。",
        impression="1.右侧少量胸腔积液。",
    )
    report = RuleNormalizer().normalize(raw)
    assert report.language == "zh"
    assert report.imputed == ("hila", "bones")
    by_section = {one.section: one.text for one in report.statements}
    assert set(REGION_NAMES) <= set(by_section)
    assert by_section["diaphragm"] == "右侧少量胸腔积液。"
    assert by_section["other"] == "所见金属扣影。"
    assert report.impression == "右侧少量胸腔积液。"
    assert " " not in report.text.findings
    assert CompletenessCheck().problems(raw, report) == []


def test_canonical_sentences_say_the_same_in_chinese():
    labeller = Labeller()
    english = "There is no pneumothorax, nodule or focal consolidation."
    chinese = canonical_in_chinese(english)
    assert chinese == "未见气胸、结节及局灶性实变。"
    before, after = labeller.label(english), labeller.label(chinese)
    assert {name: one.status for name, one in before.items()} == {name: one.status for name, one in after.items()}
    assert canonical_in_chinese("Small left effusion.") is None


def test_every_sentence_of_a_normal_report_has_its_chinese():
    report = RuleNormalizer().normalize(RawReport(findings="Heart size is normal. Lungs are clear. No effusion or pneumothorax."))
    chinese = [canonical_in_chinese(text) or "" for text in (*(one.text for one in report.statements), report.impression)]
    assert all(chinese)
    assert not any(letter.isascii() and letter.isalpha() for letter in "".join(chinese))


def test_every_region_has_a_title_in_both_languages():
    assert all(region.title and region.title_zh for region in REGIONS)
