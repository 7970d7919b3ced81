"""Translation by a language model: choice of studies, and numbers and sides that must survive."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from endpoint_stub import EndpointStub, says

from echo_pl.llm.chat import AnswerError
from echo_pl.llm.endpoint import ChatEndpoint, EndpointSpec
from echo_pl.llm.pacing import Pacing
from echo_pl.reports.llm_normalizer import CANONICAL
from echo_pl.reports.report import NormalizedReport, Statement
from echo_pl.reports.translation import Translator, chosen, lost

REPORT = NormalizedReport(
    statements=(
        Statement(section="thorax", text="The thorax is unremarkable.", imputed=True),
        Statement(section="lungs", text="A 4 mm nodule in the left upper lobe.", source="4 mm nodule LUL"),
        Statement(section="heart", text="The heart is enlarged.", source="Heart large"),
    ),
    impression="Left lung nodule.",
    dropped={"technique": 2},
)
RIGHT = ["左肺上叶4 mm结节。", "心影增大。", "左肺结节。"]


def answer(texts: list[str]):
    return says(json.dumps({"translations": texts}, ensure_ascii=False))


def translator(stub: EndpointStub, answers: Path | None = None) -> Translator:
    spec = EndpointSpec(base_url=stub.url, model="small", attempts=2, concurrency=2, answers=answers)
    return Translator(ChatEndpoint(spec, pacing=Pacing(first=0.0)))


def test_a_translated_report():
    with EndpointStub(lambda request, number: answer(["左肺上叶4 mm结节", *RIGHT[1:]])) as stub:
        found = translator(stub).translate(REPORT)
    assert json.loads(stub.users()[0]) == ["A 4 mm nodule in the left upper lobe.", "The heart is enlarged.", "Left lung nodule."]
    assert [one.text for one in found.statements] == [CANONICAL["zh"]["thorax"], *RIGHT[:2]]
    assert (found.impression, found.language, found.dropped) == (RIGHT[2], "zh", {"technique": 2})
    assert found.imputed == ("thorax",)
    assert [one.source for one in found.statements] == ["", "4 mm nodule LUL", "Heart large"]
    assert stub.requests[0]["response_format"]["json_schema"]["schema"]["properties"]["translations"]["minItems"] == 3


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (["右肺上叶4 mm结节。", *RIGHT[1:]], "laterality"),
        (["左肺上叶5 mm结节。", *RIGHT[1:]], "numbers"),
        ([*RIGHT[:2], "肺结节。"], "laterality"),
    ],
)
def test_a_lost_number_or_side_gets_one_more_request(wrong, reason, tmp_path):
    with EndpointStub(lambda request, number: answer(wrong if number == 0 else RIGHT)) as stub:
        assert translator(stub, tmp_path).translate(REPORT).impression == RIGHT[2]
        assert len(stub.requests) == 2
        place = next(i for i in range(3) if wrong[i] != RIGHT[i]) + 1
        assert stub.users()[1].endswith(f"from 1: {place}.")
        translator(stub, tmp_path).translate(REPORT)
        assert len(stub.requests) == 2, "both answers are cached"
    with EndpointStub(lambda request, number: answer(wrong)) as stub:
        with pytest.raises(AnswerError, match=f"{reason}: lost in the translation of 1 of 3 sentences, twice") as error:
            translator(stub).translate(REPORT)
        assert error.value.reason == reason
        assert len(stub.requests) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (json.dumps({"translations": RIGHT[:2]}), "wrong_form"),
        (json.dumps({"translations": [*RIGHT[:2], 4]}), "wrong_form"),
        (json.dumps({"translations": [*RIGHT[:2], "Left lung nodule."]}), "wrong_language"),
        (json.dumps(RIGHT), "wrong_form"),
        ("左", "not_json"),
    ],
)
def test_invalid_answers(text, reason):
    with EndpointStub(lambda request, number: says(text)) as stub:
        with pytest.raises(AnswerError, match=reason):
            translator(stub).translate(REPORT)
        assert len(stub.requests) == 2


def test_many_reports_in_order_and_without_a_request():
    imputed = NormalizedReport(statements=REPORT.statements[:1], impression="  ")
    with EndpointStub(lambda request, number: answer(RIGHT)) as stub:
        found = list(translator(stub).translate_many([imputed, REPORT, imputed]))
        assert [len(one.statements) for one in found] == [1, 3, 1]
        assert found[0].text.findings == CANONICAL["zh"]["thorax"]
        assert len(stub.requests) == 1
        with pytest.raises(ValueError, match="only English"):
            translator(stub).translate(found[0])


def test_canonical_and_repeated_sentences_are_not_sent():
    statements = (*REPORT.statements, Statement(section="other", text="Left lung nodule."))
    report = NormalizedReport(statements=statements, impression="Left lung nodule.")
    with EndpointStub(lambda request, number: answer([RIGHT[0], RIGHT[2]])) as stub:
        endpoint = ChatEndpoint(EndpointSpec(base_url=stub.url, model="small"))
        found = Translator(
            endpoint, known={"The heart is enlarged.": "心大。", "The thorax is unremarkable.": "胸廓正常。"}.get
        ).translate(report)
    assert json.loads(stub.users()[0]) == ["A 4 mm nodule in the left upper lobe.", "Left lung nodule."]
    assert [one.text for one in found.statements] == ["胸廓正常。", RIGHT[0], "心大。", RIGHT[2]]
    assert found.impression == RIGHT[2]


SURVIVES = [
    ("Left and right effusions.", "左侧及右侧胸腔积液。"),
    ("Bilateral effusions, both small.", "双侧少量胸腔积液。"),
    ("Two nodules, the first of 3.5 x 2 cm.", "2个结节，第1个为3.5 x 2 cm。"),
    ("Two nodules.", "两个结节。"),
    ("Fracture of the T8 vertebra.", "Ｔ８椎体骨折。"),
    ("RLL opacity; levoscoliosis.", "右肺下叶致密影；脊柱左侧凸。"),
    ("Upright view, all clear.", "立位，清晰。"),
]
LOST = [
    ("Two nodules.", "3个结节。", "numbers"),
    ("A 3.5 cm mass.", "35 cm肿块。", "numbers"),
    ("A mass of 2 by 2 cm.", "2 cm肿块。", "numbers"),
    ("Left effusion.", "胸腔积液。", "laterality"),
    ("Effusion.", "右侧胸腔积液。", "laterality"),
    ("Left effusion, right nodule.", "左侧胸腔积液，左肺结节。", "laterality"),
    ("A 2 cm mass.", "2 cm左右肿块。", "laterality"),
]


@pytest.mark.parametrize(("english", "chinese"), SURVIVES)
def test_nothing_is_lost(english, chinese):
    assert lost(english, chinese) is None


@pytest.mark.parametrize(("english", "chinese", "what"), LOST)
def test_lost_numbers_and_sides(english, chinese, what):
    assert lost(english, chinese) == what


def test_the_choice_depends_on_seed_and_key_alone():
    keys = [f"study-{i}" for i in range(4000)]
    half = {key for key in keys if chosen(key, seed=3)}
    assert half == {key for key in reversed(keys) if chosen(key, seed=3)}
    assert 1850 < len(half) < 2150, "five standard deviations of a fair coin"
    other = {key for key in keys if chosen(key, seed=4)}
    assert 850 < len(half & other) < 1150
    assert {key for key in keys if chosen(key, seed=3, share=0.25)} < half
    assert not any(chosen(key, seed=3, share=0.0) for key in keys)
    assert all(chosen(key, seed=3, share=1.0) for key in keys)
    with pytest.raises(ValueError, match="between 0 and 1"):
        chosen("a", seed=0, share=1.5)
