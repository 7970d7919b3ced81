"""The normalizer that asks a language model: valid and invalid answers, and a killed run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from copy import deepcopy
from pathlib import Path

import pytest
from endpoint_stub import EndpointStub, Reply, normal_answer, pieces_asked, says

from echo_pl.llm.answer_cache import AnswerCache
from echo_pl.llm.chat import AnswerError
from echo_pl.llm.endpoint import ChatEndpoint, EndpointSpec
from echo_pl.llm.json_answer import answer_schema
from echo_pl.llm.pacing import Pacing
from echo_pl.reports.llm_normalizer import (
    CANONICAL,
    DROP_REASONS,
    LLMNormalizer,
    ReportAnswer,
    normalizer_name,
    pieces_of,
    system_message,
)
from echo_pl.reports.regions import OTHER, REGION_NAMES, SECTIONS
from echo_pl.reports.report import NormalizedReport, RawReport, Statement

REPORT = RawReport(
    findings="Two views of XXXX were taken. Heart is enlarged; 3 mm nodule at the right base. Port-A-Cath tip in the SVC.",
    impression="Cardiomegaly.",
    indication="Cough",
    comparison="None.",
)


def sentence(text: str, *names: str) -> dict[str, object]:
    return {"text": text, "from": list(names)}


def missing() -> dict[str, object]:
    return {"mentioned": False, "sentences": []}


def mentioned(*sentences: dict[str, object]) -> dict[str, object]:
    return {"mentioned": True, "sentences": list(sentences)}


GOOD = {
    "thorax": missing(),
    "mediastinum": mentioned(sentence("Port-A-Cath tip in the SVC.", "F3")),
    "lungs": mentioned(sentence("3 mm  nodule at the right base", "F2")),
    "heart": mentioned(sentence("Heart is enlarged.", "F2", "I1", "F2")),
    "hila": missing(),
    "diaphragm": missing(),
    "bones": missing(),
    "other": [],
    "impression": [sentence("Cardiomegaly.", "I1"), sentence("Nodule.", "F2")],
    "dropped": [{"from": "F1", "reason": "technique"}],
}


def normalizer(stub: EndpointStub, cache: Path | None = None, **changed) -> LLMNormalizer:
    spec = EndpointSpec(base_url=stub.url, model="small", answers=cache, attempts=2, concurrency=4)
    endpoint = ChatEndpoint(spec, pacing=Pacing(first=0.0))
    return LLMNormalizer(endpoint, **changed)


def test_an_answer_becomes_a_report():
    with EndpointStub(lambda request, number: says(json.dumps(GOOD))) as stub:
        found = normalizer(stub).normalize(REPORT)
    assert pieces_asked(stub.requests[0]) == pieces_of(REPORT)
    assert found.text.findings == (
        "The thorax is unremarkable. Port-A-Cath tip in the SVC. 3 mm nodule at the right base. Heart is enlarged. The hila are "
        "unremarkable. The diaphragm and costophrenic angles are unremarkable. The bony structures are unremarkable."
    )
    assert found.impression == "Cardiomegaly. Nodule."
    assert found.imputed == ("thorax", "hila", "diaphragm", "bones")
    assert found.dropped == {"technique": 1, "indication": 1, "comparison": 1, "deidentification": 1}
    heart = next(one for one in found.statements if one.section == "heart")
    assert heart.source == "Heart is enlarged; 3 mm nodule at the right base. Cardiomegaly."
    assert all(one.source == "" for one in found.statements if one.imputed)


def test_an_imputed_impression_is_marked():
    with EndpointStub(lambda request, number: says(json.dumps(normal_answer(request)))) as stub:
        made = normalizer(stub).normalize(RawReport(findings="A nodule."))
        had = normalizer(stub).normalize(RawReport(findings="A nodule.", impression="Nodule."))
    assert made.impression_imputed
    assert not had.impression_imputed


def test_requests_have_the_schema_of_strict_mode():
    def check(node: object) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object":
                assert node["additionalProperties"] is False
                assert node["required"] == list(node["properties"])
            for value in node.values():
                check(value)

    schema = answer_schema(ReportAnswer)
    check(schema)
    assert list(schema["properties"]) == [*SECTIONS, "impression", "dropped"]
    for language in ("en", "zh"):
        message = system_message(language)
        assert all(f'"{name}"' in message for name in schema["properties"])
        assert all(reason in message for reason in DROP_REASONS)
        assert "{language}" not in message
    with EndpointStub(lambda request, number: says(json.dumps(GOOD))) as stub:
        normalizer(stub).normalize(REPORT)
        normalizer(stub, form="json_object").normalize(REPORT)
    assert stub.requests[0]["response_format"]["json_schema"]["schema"] == schema
    assert stub.requests[1]["response_format"] == {"type": "json_object"}


def test_the_example_in_the_prompt_is_a_valid_answer():
    pieces, answer = re.search(r"Pieces:\n(.*?)\nAnswer:\n(.*)\n", system_message("en"), re.DOTALL).groups()
    lines = dict(line.split(": ", 1) for line in pieces.splitlines())
    report = RawReport(findings=" ".join(text for name, text in lines.items() if name[0] == "F"), impression=lines["I1"])
    assert pieces_of(report) == lines
    with EndpointStub(lambda request, number: says(answer)) as stub:
        found = normalizer(stub).normalize(report)
    assert found.imputed == ("thorax", "mediastinum", "hila", "bones")


def test_pieces_hold_all_words():
    text = "Lungs are clear.No effusion. \n 2.5 cm mass (RUL).  (Old) fracture? 心影增大。双肺清晰"
    pieces = pieces_of(RawReport(findings=text, impression=" \n"))
    assert "".join("".join(pieces.values()).split()) == "".join(text.split())
    assert list(pieces) == [f"F{i}" for i in range(1, 5)]
    assert pieces["F2"] == "2.5 cm mass (RUL)."


def test_chinese():
    answer = {
        **GOOD,
        "mediastinum": mentioned(sentence("输液港尖端位于上腔静脉", "F3")),
        "lungs": mentioned(sentence("右肺底3 mm结节。", "F2")),
    }
    answer |= {
        "heart": mentioned(sentence("心影增大。", "F2")),
        "impression": [sentence("心影增大。", "I1"), sentence("结节。", "F2")],
    }
    with EndpointStub(lambda request, number: says(json.dumps(answer, ensure_ascii=False))) as stub:
        found = normalizer(stub, language="zh").normalize(REPORT)
        assert normalizer_name(EndpointSpec(base_url=stub.url, model="small"), "zh") == "llm-small-prompt1-zh"
    assert (found.language, found.impression) == ("zh", "心影增大。结节。")
    assert "".join(found.text.findings.split()) == found.text.findings.replace("3 mm", "3mm")
    assert found.statements[0].text == CANONICAL["zh"]["thorax"]


def broken(change) -> str:
    answer = deepcopy(GOOD)
    change(answer)
    return json.dumps(answer)


INVALID = {
    "text around it": ("not_json", f"Here it is: {json.dumps(GOOD)}"),
    "a fence": ("not_json", f"```json\n{json.dumps(GOOD)}\n```"),
    "a key twice": ("wrong_form", json.dumps(GOOD)[:-1] + ', "other": []}'),
    "a list": ("wrong_form", "[]"),
    "deep nesting": ("not_json", "[" * 100_000),
    "no hila": ("wrong_form", broken(lambda a: a.pop("hila"))),
    "a key too many": ("wrong_form", broken(lambda a: a.update(secret_word=[]))),
    "a number for a flag": ("wrong_form", broken(lambda a: a["heart"].update(mentioned=1))),
    "mentioned and empty": ("wrong_form", broken(lambda a: a["bones"].update(mentioned=True))),
    "not mentioned and full": ("wrong_form", broken(lambda a: a["heart"].update(mentioned=False))),
    "a plain string": ("wrong_form", broken(lambda a: a["other"].append("secret_word"))),
    "no source": ("wrong_form", broken(lambda a: a["other"].append(sentence("secret_word.")))),
    "a source that is not": ("wrong_form", broken(lambda a: a["other"].append(sentence("secret_word.", "F9")))),
    "no words": ("wrong_form", broken(lambda a: a["other"].append(sentence(" ", "F1")))),
    "an unknown reason": ("wrong_form", broken(lambda a: a["dropped"][0].update(reason="secret_word"))),
    "no impression": ("wrong_form", broken(lambda a: a["impression"].clear())),
    "a piece lost": ("piece_lost", broken(lambda a: a["dropped"].clear())),
    "a mark of a name": ("deidentification_mark", broken(lambda a: a["other"].append(sentence("Seen by XXXX.", "F1")))),
    "another language": ("wrong_language", broken(lambda a: a["other"].append(sentence("心影增大。", "F1")))),
}


@pytest.mark.parametrize("fault", INVALID)
def test_invalid_answers_are_requested_again(fault):
    reason, text = INVALID[fault]
    with EndpointStub(lambda request, number: says(text)) as stub:
        with pytest.raises(ValueError, match=reason) as error:
            normalizer(stub).normalize(REPORT)
        assert len(stub.requests) == 2
    assert isinstance(error.value, AnswerError)
    assert error.value.reason == reason
    assert not re.search("secret_word|enlarged|nodule|心影", str(error.value))


def test_no_request_is_sent_for_an_empty_report():
    with EndpointStub(lambda request, number: says(json.dumps(GOOD))) as stub:
        found = list(normalizer(stub).normalize_many([RawReport(indication="Cough"), REPORT]))
    assert isinstance(found[0], AnswerError)
    assert found[0].reason == "no_report"
    assert isinstance(found[1], NormalizedReport)
    assert len(stub.requests) == 1


def test_wrong_arguments():
    endpoint = ChatEndpoint(EndpointSpec(base_url="http://localhost/v1", model="m"))
    with pytest.raises(ValueError, match="language"):
        LLMNormalizer(endpoint, language="de")
    with pytest.raises(ValueError, match="form of answers"):
        LLMNormalizer(endpoint, form="yaml")
    with pytest.raises(ValueError, match="no negative sentence for heart, hila"):
        LLMNormalizer(endpoint, negatives={name: "Fine." for name in REGION_NAMES if name[0] != "h"})


def test_every_canonical_sentence_is_a_statement():
    for sentences in CANONICAL.values():
        assert list(sentences) == list(REGION_NAMES)
        assert [Statement(section=name, text=text, imputed=True).section for name, text in sentences.items()] == list(REGION_NAMES)
    assert OTHER not in CANONICAL["en"]


PROGRAM = """
import sys
from pathlib import Path
from echo_pl.llm.endpoint import ChatEndpoint, EndpointSpec
from echo_pl.reports.llm_normalizer import LLMNormalizer
from echo_pl.reports.report import RawReport

url, cache = sys.argv[1:]
endpoint = ChatEndpoint(EndpointSpec(base_url=url, model="small", answers=Path(cache), concurrency=3))
reports = (RawReport(findings=f"Nodule number {i}.") for i in range(24))
for found in LLMNormalizer(endpoint).normalize_many(reports):
    print(found.text.findings, flush=True)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_without_a_repeated_request(tmp_path):
    free = threading.Event()

    def answer(request, number):
        if not free.is_set() and number >= 10:
            return Reply(hang=True)
        return says(json.dumps(normal_answer(request)))

    repository = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(repository), "no_proxy": "127.0.0.1"}
    with EndpointStub(answer) as stub:
        command = [sys.executable, "-c", PROGRAM, stub.url, str(tmp_path)]
        first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        cache = AnswerCache(tmp_path)
        longest = time.monotonic() + 120
        while len(cache) < 10 or len(stub.requests) < 13:  # ten answers are stored, three requests hang
            assert first.poll() is None
            assert time.monotonic() < longest
            time.sleep(0.02)
        first.kill()
        first.wait()
        assert len(stub.requests) == 13
        free.set()
        second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
        assert len(stub.requests) == 13 + 14, "the ten answered reports are not sent again"
        asked = [pieces_asked(request)["F1"] for request in stub.requests]
        assert len(set(asked[:10] + asked[13:])) == 24
    wanted = [f"Nodule number {i}." for i in range(24)]
    assert [re.search(r"Nodule number \d+\.", line).group() for line in second.stdout.splitlines()] == wanted
    assert not list(tmp_path.rglob("*.partial"))
