"""Predictions and references from files: both formats, and every way in which they do not fit."""

from __future__ import annotations

import json

import pytest

from echo_pl.evaluation.cases import (
    EMPTY,
    Case,
    Prediction,
    UnmatchedIdsError,
    check_language,
    formatted,
    join,
    parsed_prediction,
    parsed_reference,
)
from echo_pl.evaluation.predictions import read_predictions, read_references
from echo_pl.evaluation.score_files import write_records
from echo_pl.structs import ReportText

CLEAR = ReportText(findings="The lungs are clear.", impression="Normal chest.")
FIELDS = {"findings": CLEAR.findings, "impression": CLEAR.impression}
RESPONSE = "Findings: The lungs are clear. Impression: Normal chest."


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def case(key: str, text: str, reference: str = "the lungs are clear") -> Case:
    return Case(
        key=key,
        prediction=Prediction(report=ReportText(findings=text, impression="")),
        reference=ReportText(findings=reference, impression=""),
    )


def test_the_official_format_is_joined_with_predictions_by_id(tmp_path):
    official = [{"sample_id": name, "images": ["a.png"], "ground_truth": FIELDS} for name in ("one", "two")]
    lines = [json.dumps({"sample_id": "two", "prediction": FIELDS}), "", json.dumps({"sample_id": "one", "prediction": RESPONSE})]
    references = read_references(write(tmp_path / "test.json", official))
    cases = join(read_predictions(write(tmp_path / "ours.jsonl", "\n".join(lines))), references)
    assert [(one.key, one.prediction.report, one.reference) for one in cases] == [("one", CLEAR, CLEAR), ("two", CLEAR, CLEAR)]


def test_an_object_by_id_and_numbers_as_ids(tmp_path):
    for value in (RESPONSE, FIELDS, {"prediction": FIELDS, "reference": FIELDS}):
        assert read_predictions(write(tmp_path / "a.json", {"7": value}))["7"].report == CLEAR
    assert list(read_predictions(write(tmp_path / "b.json", [{"sample_id": 7, "prediction": RESPONSE}]))) == ["7"]


@pytest.mark.parametrize("prediction", ["the lungs are clear", "", None, 3, [], {"text": "clear"}, {"findings": 3}])
def test_what_cannot_be_read_is_an_empty_report_and_known_as_such(tmp_path, prediction):
    file = write(tmp_path / "a.json", [{"sample_id": "x", "prediction": prediction, "stopped": False}])
    assert read_predictions(file)["x"] == Prediction(report=EMPTY, parsed=False, stopped=False)


def test_free_text_is_all_findings(tmp_path):
    file = write(tmp_path / "a.json", {"x": "the lungs are clear"})
    assert read_predictions(file, free_text=True)["x"].report == ReportText(findings="the lungs are clear", impression="")


def test_records_are_read_again_as_they_were(tmp_path):
    known = Prediction(report=CLEAR, stopped=True, looped=False, eos_confidence=0.5, forwards_per_block=1.25)
    cases = [Case(key="a", prediction=known, reference=CLEAR)]
    cases.append(Case(key="b", prediction=Prediction(report=EMPTY, parsed=False), reference=CLEAR))
    write_records(tmp_path, cases, {"bleu_1": [0.5, float("nan")]})
    assert join(read_predictions(tmp_path), read_references(tmp_path)) == cases
    lines = [json.loads(line) for line in (tmp_path / "reports.jsonl").read_text().splitlines()]
    assert [line["scores"] for line in lines] == [{"bleu_1": 0.5}, {"bleu_1": None}]


def test_ids_that_do_not_match_are_named_on_both_sides():
    predictions = {name: Prediction(report=CLEAR) for name in ("a", "b", "c")}
    with pytest.raises(UnmatchedIdsError, match=r"2 ids only in predictions \(a, b\), 1 only in references \(d\)") as caught:
        join(predictions, {"c": CLEAR, "d": CLEAR})
    assert (caught.value.only_first, caught.value.only_second) == (("a", "b"), ("d",))


def test_a_long_list_of_ids_is_cut_in_the_message_and_whole_in_the_error():
    with pytest.raises(UnmatchedIdsError, match="and 20 more") as caught:
        join({f"s{i}": Prediction(report=CLEAR) for i in range(30)}, {})
    assert len(caught.value.only_first) == 30


def test_duplicate_ids_are_named(tmp_path):
    records = [{"sample_id": name, "prediction": RESPONSE} for name in ("a", "b", "a", "c", "c")]
    with pytest.raises(ValueError, match="2 sample_ids more than once: a, c"):
        read_predictions(write(tmp_path / "a.json", records))


def test_ids_that_stand_twice_in_an_object_are_named(tmp_path):
    with pytest.raises(ValueError, match="1 sample_ids more than once: a;"):
        read_predictions(write(tmp_path / "a.json", f'{{"a": "{RESPONSE}", "b": "{RESPONSE}", "a": "lost"}}'))


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\u2029"])
def test_a_line_separator_inside_a_report_ends_no_record(tmp_path, separator):
    odd = ReportText(findings=f"clear{separator}lungs", impression="")
    write_records(tmp_path, [Case(key="a", prediction=Prediction(report=odd), reference=CLEAR)])
    assert read_predictions(tmp_path)["a"].report == odd


@pytest.mark.parametrize(
    "text",
    ["FINDINGS: The lungs are clear. IMPRESSION: Normal chest.", "findings : The lungs are clear.\n\nImpression：Normal chest."],
)
def test_headings_count_in_any_case_of_letters_on_both_sides(tmp_path, text):
    file = write(tmp_path / "a.json", [{"sample_id": "x", "prediction": text, "reference": text}])
    assert read_predictions(file)["x"] == Prediction(report=CLEAR)
    assert read_references(file)["x"] == CLEAR
    zh = write(tmp_path / "b.json", {"x": "所见:心影正常。 结论 : 正常"})
    assert read_predictions(zh)["x"].report == ReportText(findings="心影正常。", impression="正常")


def test_a_word_that_is_no_heading_is_left_alone(tmp_path):
    file = write(tmp_path / "a.json", {"x": "Findings: no new findings since. Impression: the general impression is normal."})
    assert read_predictions(file)["x"].report.findings == "no new findings since."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.jsonl", '{"sample_id": "a"}\n{', "is not JSON lines"),
        ("a.json", "3", "neither a list"),
        ("a.json", "[]", "has no records"),
        ("a.json", '{"sample_id": "a"}\n{"sample_id": "b"}', r"JSON lines go by the name \.jsonl"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.json", '{"a": {"prediction": "x", "sample_id": "b"}}', "sample_id differs from their key: a"),
        ("a.json", '[{"sample_id": "a", "prediction": "\\ud800"}]', "record a of .* half a character"),
        ("a.json", '{"a": {"prediction": "x", "stopped": "yes"}}', "stopped of a must be true, false or left out, got 'yes'"),
        ("a.json", '{"a": {"prediction": "x", "eos_confidence": "0.9"}}', "eos_confidence of a must be a number"),
        ("a.json", '{"a": {"prediction": "x", "eos_confidence": NaN}}', "eos_confidence of a must be a number .*got nan"),
        ("a.json", '{"a": {"prediction": "x", "nfe": true}}', "nfe of a must be a number .*got True"),
        ("a.json", '[{"id": "a"}]', "record 1 .* 'sample_id'"),
        ("a.json", '[{"sample_id": "a", "ground_truth": {}}]', "1 of 1 records .* have no 'prediction'.*--references"),
    ],
)
def test_a_file_of_another_format_is_an_error(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_predictions(write(tmp_path / name, content))


def test_a_missing_or_binary_file_is_an_error(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_predictions(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_predictions(tmp_path / "b.json")


def test_a_message_never_has_a_report_in_it(tmp_path):
    broken = '{"sample_id": "a", "prediction": "the secret heart'
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (what it must not say is what counts)
        read_predictions(write(tmp_path / "a.jsonl", broken))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("reference", [None, {}, {"findings": " ", "impression": ""}, "", 3])
def test_a_study_without_a_reference_is_an_error(tmp_path, reference):
    good = {"sample_id": "good", "reference": RESPONSE}
    with pytest.raises(ValueError, match=r"1 of 2 records .*: bad; a study without a reference"):
        read_references(write(tmp_path / "a.json", [good, {"sample_id": "bad", "reference": reference}]))


def test_both_sides_are_formatted_alike():
    messy = ReportText(findings=" The  lungs\nare clear.", impression="Normal\tchest. ")
    assert formatted(messy) == formatted(CLEAR) == "The lungs are clear. Normal chest."
    assert (formatted(CLEAR, "findings"), formatted(CLEAR, "impression")) == ("The lungs are clear.", "Normal chest.")


def test_another_language_is_an_error_in_references_and_listed_in_predictions():
    zh, en = "心影正常，双肺清晰", "the lungs are clear"
    with pytest.raises(ValueError, match="1 of 2 references are not in language 'en': b"):
        check_language([case("a", en), case("b", en, zh)], "en")
    assert check_language([case("a", en), case("b", zh), case("c", "")], "en") == ["b"]
    assert check_language([case("a", f"{zh} CT", zh)], "zh") == []
    with pytest.raises(ValueError, match="2 of 3 predictions are not in language 'en'"):
        check_language([case("a", zh), case("b", zh), case("c", en)], "en")


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        ("Finding: Clear lungs. Impression: Normal.", "Clear lungs.", "Normal."),
        ("Here it is.\n\n**Findings:** Clear lungs.\n**Impressions:** Normal.", "Clear lungs.", "Normal."),
        ("## Findings\n: Clear lungs.", "Clear lungs.", ""),
        ("Clear lungs. Impression: Normal.", "Clear lungs.", "Normal."),
        ("No new findings: unchanged. Impression: Stable.", "No new findings: unchanged.", "Stable."),
        ("以下是报告。所见: 心影正常。结论: 正常", "心影正常。", "正常"),
    ],
)
def test_variants_of_headings_are_parsed_completely(text, findings, impression):
    assert parsed_prediction(text).report == parsed_reference(text) == ReportText(findings=findings, impression=impression)


@pytest.mark.parametrize("text", ["Clear lungs.", "No new findings: unchanged.", "", "Impressionable: x"])
def test_a_text_without_headings_is_unparsable(text):
    assert (parsed_prediction(text).parsed, parsed_prediction(text).report) == (False, ReportText(findings="", impression=""))
