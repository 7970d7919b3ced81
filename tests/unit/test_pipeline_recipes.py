"""The pipeline's own parts together: keys of duplicates, and texts that skip the translator."""

from __future__ import annotations

import json

import numpy as np
import pytest
from endpoint_stub import EndpointStub, says

from echo_pl.data.pipeline.recipes import EmbeddingSearch, TranslatorRecipe
from echo_pl.llm.endpoint import EndpointSpec
from echo_pl.reports.llm_normalizer import CANONICAL
from echo_pl.reports.near_duplicates import critical_words
from echo_pl.reports.report import NormalizedReport, RawReport, Statement
from echo_pl.reports.rules import RuleNormalizer


class AllAlike:
    """Sees no difference between any two texts."""

    name, width, threshold = "alike", 2, 0.9

    def embed(self, texts):
        return np.tile(np.float16([1.0, 0.0]), (len(texts), 1))


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Effusion on the left. No nodule.", "No effusion. Nodule on the left.", False),
        ("Small left effusion.", "No left effusion.", False),
        ("Left effusion.", "Right effusion.", False),
        ("A 4 mm nodule.", "A 14 mm nodule.", False),
        ("Pneumonia.", "Possible pneumonia.", False),
        ("Nodule in the left upper lobe.", "Nodule in the left lower lobe.", False),
        ("左侧胸腔积液。未见结节。", "未见胸腔积液。左肺结节。", False),
        ("Small left effusion.", "There is a small effusion on the left.", True),
        ("The lungs are clear. Heart size is normal.", "Clear lungs and a normal heart.", True),
    ],
)
def test_duplicates_have_the_same_findings(one, other, alike, tmp_path):
    found = list(EmbeddingSearch(AllAlike()).find([("a", one), ("b", other)], [], 0.9, tmp_path))
    assert [(each.key, each.of) for each in found] == ([("b", "a")] if alike else [])


def test_denials_and_sides_alone_would_not_tell_them_apart():
    assert critical_words("Effusion on the left. No nodule.") == critical_words("No effusion. Nodule on the left.")


def translated(report: NormalizedReport, folder) -> tuple[NormalizedReport, list[str]]:
    """The report in Chinese, and the sentences that were sent."""

    def answer(request, number):
        sent = json.loads(request["messages"][1]["content"])
        return says(json.dumps({"translations": ["左肺结节。" if "left" in one else "结节。" for one in sent]}))

    with EndpointStub(answer) as stub:
        translator = TranslatorRecipe(endpoint=EndpointSpec(base_url=stub.url, model="m", answers=folder)).build()
        (found,) = translator.translate_many([report])
        return found, [one for user in stub.users() for one in json.loads(user)]


def test_canonical_sentences_of_the_rules_cost_nothing(tmp_path):
    findings = "Heart size is normal. No effusion or pneumothorax. No acute bony abnormality. Lungs are clear."
    normal = RuleNormalizer().normalize(RawReport(findings=findings))
    found, sent = translated(normal, tmp_path / "answers")
    assert sent == []
    assert found.language == "zh"
    assert found.text.findings.isascii() is False
    mixed = RuleNormalizer().normalize(RawReport(findings=f"{findings} Nodule in the left lung.", impression="Nodule."))
    assert translated(mixed, tmp_path / "answers")[1] == ["Nodule in the left lung.", "Nodule."]


def test_fillings_of_the_language_model_cost_nothing(tmp_path):
    statements = tuple(Statement(section=name, text=text, imputed=True) for name, text in CANONICAL["en"].items())
    found, sent = translated(NormalizedReport(statements=statements, impression="Nodule."), tmp_path / "answers")
    assert sent == ["Nodule."]
    assert all("结节" not in one.text and not one.text.isascii() for one in found.statements)
