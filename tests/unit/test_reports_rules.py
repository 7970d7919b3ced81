"""The rule engine: seven regions in order, positive statements word for word, canonical negatives, no contradiction."""

from __future__ import annotations

import pickle

import pytest

from echo_pl.reports.regions import OTHER, REGION_NAMES
from echo_pl.reports.report import NormalizedReport, RawReport
from echo_pl.reports.rules import RuleNormalizer


@pytest.fixture(scope="module")
def engine() -> RuleNormalizer:
    return RuleNormalizer()


def section(report: NormalizedReport, name: str) -> list[str]:
    return [one.text for one in report.statements if one.section == name and not one.imputed]


def test_every_region_is_stated_in_order(engine):
    report = engine.normalize(RawReport(findings="Small nodule in the left lung.", impression="Nodule."))
    order = [one.section for one in report.statements]
    assert list(dict.fromkeys(order)) == list(REGION_NAMES)
    assert report.imputed == tuple(name for name in REGION_NAMES if name != "lungs")
    assert section(report, "lungs") == ["Small nodule in the left lung."]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("No effusion or pneumothorax.", {"lungs": ["There is no pneumothorax."], "diaphragm": ["There is no pleural effusion."]}),
        ("No large effusion.", {"diaphragm": ["There is no large pleural effusion."]}),
        ("No acute bony abnormality.", {"bones": ["There is no acute bony abnormality."]}),
        ("Heart and mediastinum are normal.",
         {"heart": ["The heart is normal in size."], "mediastinum": ["Mediastinal contours are normal."]}),
        ("Lungs are clear without focal consolidation or effusion.",
         {"lungs": ["The lungs are clear.", "There is no focal consolidation."], "diaphragm": ["There is no pleural effusion."]}),
        ("Low lung volumes with no effusion.", {"lungs": ["Low lung volumes."], "diaphragm": ["There is no pleural effusion."]}),
        ("There is cardiomegaly and a small left effusion.",
         {"heart": ["There is cardiomegaly."], "diaphragm": ["A small left effusion."]}),
        ("The right lung is clear.", {"lungs": ["The right lung is clear."]}),
        ("No right effusion.", {"diaphragm": ["No right effusion."]}),
        ("Heart size is normal and stable since the last visit.",
         {"heart": ["Heart size is normal and stable since the last visit."]}),
        ("The lungs are well expanded.", {"lungs": ["The lungs are well expanded."]}),
        ("The left clavicle is intact.", {"bones": ["The left clavicle is intact."]}),
        ("Calcified hilar and mediastinal nodes.", {"hila": ["Calcified hilar and mediastinal nodes."]}),
        ("Density in the left breast.", {"thorax": ["Density in the left breast."]}),
    ],
)  # fmt: skip
def test_clauses(engine, sentence, expected):
    report = engine.normalize(RawReport(findings=sentence, impression="See above."))
    found = {name: texts for name in (*REGION_NAMES, OTHER) if (texts := section(report, name))}
    assert found == expected


@pytest.mark.parametrize(
    ("sentence", "section_name", "expected"),
    [  # faults of earlier versions that no label shows; "": the sentence itself
        ("No visible bony injury.", "bones", ""),
        ("The tracheostomy tube has been removed.", "mediastinum", ""),
        ("Shadow compatible with effusion, accompanied with some atelectasis.", "lungs", ""),
        ("Sternal wires appear intact.", "thorax", ""),
        ("Central and basilar opacities.", "lungs", ""),
        ("No acute infiltrate or large effusion.", "lungs", "There is no acute consolidation."),
        ("No infiltrates or masses.", "lungs", "There is no consolidation or mass."),
        ("A nodule overlies the left fifth rib.", "lungs", ""),
        ("Irregularity of the sixth rib.", "bones", ""),
        ("Heart size is top normal.", "heart", ""),
        ("No large volume effusion.", "diaphragm", ""),
        ("Lower lobe nodules not seen on the prior film.", "lungs", ""),
        ("On the lateral view a septal occluder is seen.", "other", ""),
        ("Normal mediastinal contour, and aeration.", "mediastinum", ""),
        ("No acute, displaced rib fractures.", "bones", "There is no acute, displaced rib fracture."),
        ("No large pneumothorax or effusion.", "diaphragm", "There is no large pleural effusion."),
        ("No effusion or large pneumothorax.", "diaphragm", "There is no pleural effusion."),
        ("Hilar fullness is present suggesting no progress.", "hila", ""),
        ("No nodule, large effusion, or pneumothorax.", "lungs", "There is no nodule or pneumothorax."),
        ("Stable cardiomediastinal silhouette.", "mediastinum", ""),
        ("Calcified mediastinal and hilar nodes of old granulomatous disease.", "hila", ""),
        ("Two views of the chest show normal size of the heart.", "heart", ""),
        ("The apices are clear.", "lungs", ""),
        ("There is an opacity also present before.", "lungs", ""),
    ],
)
def test_earlier_faults(engine, sentence, section_name, expected):
    report = engine.normalize(RawReport(findings=sentence, impression="See above."))
    assert (expected or sentence) in section(report, section_name)


def test_a_report_in_lines_with_headings(engine):
    findings = "FINDINGS:\nHeart: normal\nLungs: Clear, no\npneumothorax\nPleura: small left effusion\n1. Old rib fracture"
    report = engine.normalize(RawReport(findings=findings, impression="See above."))
    assert section(report, "heart") == ["The heart is normal in size."]
    assert section(report, "lungs") == ["The lungs are clear.", "There is no pneumothorax."]
    assert section(report, "diaphragm") == ["Pleura: small left effusion."]
    assert section(report, "bones") == ["Old rib fracture."]


def test_a_region_with_devices_alone_is_filled(engine):
    report = engine.normalize(RawReport(findings="The endotracheal tube is 3 cm above the carina."))
    assert section(report, "mediastinum") == ["The endotracheal tube is 3 cm above the carina."]
    assert "mediastinum" in report.imputed


@pytest.mark.parametrize(
    "sentence",
    [
        "A 7 mm nodule projects over the fourth right rib, which may represent a nipple shadow.",
        "The tip of the right central line is 2.5 cm above the carina.",
        "Mixed linear and patchy opacities in both bases, likely atelectasis.",
        "Bilateral atelectasis and effusions.",
    ],
)
def test_positives_keep_their_words(engine, sentence):
    report = engine.normalize(RawReport(findings=sentence))
    assert sentence in [one.text for one in report.statements]
    assert all(one.source for one in report.statements if not one.imputed)


def test_a_sentence_that_cannot_be_cut_is_repeated_in_its_regions(engine):
    report = engine.normalize(RawReport(findings="Bilateral atelectasis and effusions.", impression="See above."))
    assert section(report, "lungs") == section(report, "diaphragm") == ["Bilateral atelectasis and effusions."]


def test_pieces_are_dropped_and_counted(engine):
    findings = (
        "Two views of the chest. Comparison is made with XXXX. Findings were discussed with Dr. XXXX. 1. Lungs clear. Lungs clear. "
        "The XXXX are intact."
    )
    report = engine.normalize(RawReport(findings=findings, impression="Normal chest."))
    assert all(report.dropped[name] == 1 for name in ("technique", "comparison", "communication", "duplicate", "numbering"))
    assert report.dropped["deidentification"] == 4  # three marks, and a sentence that lost its subject
    assert section(report, "lungs") == ["The lungs are clear."]
    assert "XXXX" not in report.text.findings + report.impression


def test_a_sentence_without_a_region_is_kept(engine):
    report = engine.normalize(RawReport(findings="Lungs clear. A button lies in the pocket.", impression="Normal."))
    assert section(report, OTHER) == ["A button lies in the pocket."]
    assert report.text.findings.endswith("A button lies in the pocket.")


def test_without_findings_the_impression_is_the_source(engine):
    report = engine.normalize(RawReport(impression="1. Cardiomegaly. 2. No effusion."))
    assert section(report, "heart") == ["Cardiomegaly."]
    assert section(report, "diaphragm") == ["There is no pleural effusion."]
    assert report.impression == "Cardiomegaly. No effusion."


def test_a_missing_impression_is_imputed_and_marked(engine):
    normal = engine.normalize(RawReport(findings="Lungs clear."))
    assert (normal.impression, normal.impression_imputed) == ("No acute cardiopulmonary abnormality.", True)
    ill = engine.normalize(RawReport(findings="Lungs clear. Large heart."))
    assert (ill.impression, ill.impression_imputed) == ("Large heart.", True)
    assert not engine.normalize(RawReport(findings="Lungs clear.", impression="Normal.")).impression_imputed


def test_a_filling_never_contradicts(engine):
    report = engine.normalize(RawReport(findings="Lungs clear.", impression="Mild cardiomegaly. Possible left rib fracture."))
    assert section(report, "heart") == ["Mild cardiomegaly."]
    assert section(report, "bones") == ["Possible left rib fracture."]
    assert "fracture" not in " ".join(one.text for one in report.statements if one.imputed)
    skewed = engine.normalize(RawReport(findings="Marked scoliosis.", impression="Scoliosis."))
    assert "symmetric" not in skewed.text.findings


def test_interpretation_moves_to_the_impression(engine):
    findings = "Mild cardiomegaly. Findings are consistent with heart failure. No acute disease."
    report = engine.normalize(RawReport(findings=findings, impression="Large heart."))
    assert report.impression == "Large heart. Findings are consistent with heart failure. No acute disease."
    assert "consistent" not in report.text.findings


def test_a_sentence_that_refers_back_keeps_the_region(engine):
    report = engine.normalize(RawReport(findings="Dense band over the left breast. This measures 4 cm.", impression="See above."))
    assert section(report, "thorax")[-1] == "This measures 4 cm."


def test_html_spaces_and_encodings_are_cleaned_and_counted(engine):
    findings = "<p>Heart\u00a0is  normal.</p><br/>Patient\u00e2\u20ac\u2122s lungs &amp; pleura clear."
    report = engine.normalize(RawReport(findings=findings, impression="Normal."))
    assert report.dropped["html"] >= 3
    assert report.dropped["encoding"] == 1
    assert report.dropped["whitespace"] >= 1
    assert "<" not in report.text.findings
    assert "&" not in report.text.findings or "&amp;" not in report.text.findings


@pytest.mark.parametrize(
    "text",
    [
        "Los pulmones est\u00e1n claros sin derrame. El coraz\u00f3n es de tama\u00f1o normal y la aorta es normal.",
        "Die Lunge ist frei und das Herz ist nicht vergr\u00f6\u00dfert. Kein Erguss.",
        "Лёгкие без очаговых изменений.",
    ],
)
def test_another_language_is_an_error_without_its_words(engine, text):
    with pytest.raises(ValueError, match="neither in English nor in Chinese") as caught:
        engine.normalize(RawReport(findings=text))
    assert text.split()[0] not in str(caught.value)


@pytest.mark.parametrize("text", ["", "  ...  ", "<br>"])
def test_an_empty_report_is_an_error(engine, text):
    with pytest.raises(ValueError, match="neither findings nor impression"):
        engine.normalize(RawReport(findings=text, impression=text))


def test_same_report_same_result_also_in_another_process(engine):
    raw = RawReport(findings="Small left effusion, with no pneumothorax.", impression="Effusion.")
    assert pickle.loads(pickle.dumps(engine)).normalize(raw) == engine.normalize(raw) == RuleNormalizer().normalize(raw)


@pytest.mark.parametrize(
    ("impression", "expected"),
    [
        ("1. Cardiomegaly 2. Small left effusion 3. No pneumothorax", "Cardiomegaly. Small left effusion. No pneumothorax."),
        ("1.Cardiomegaly. 2.Small left effusion.", "Cardiomegaly. Small left effusion."),
        ("1) Nodule of 2.5 cm (2) Cardiomegaly", "Nodule of 2.5 cm. Cardiomegaly."),
        ("1. Fractures of ribs 1 and 2. No pneumothorax.", "Fractures of ribs 1 and 2. No pneumothorax."),
        ("Nodules, at least 2. No effusion.", "Nodules, at least 2. No effusion."),
    ],
)
def test_numbers_of_a_list_are_dropped_and_others_kept(engine, impression, expected):
    assert engine.normalize(RawReport(findings="Heart is enlarged.", impression=impression)).impression == expected
