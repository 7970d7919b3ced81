"""Rules of every report metric: empty reports score 0 and count, signatures name the variant and the models."""

from __future__ import annotations

import sys

import pytest
import torch
from metric_reports import CONCEPTS, Found, label

from echo_pl.metrics.bleu import Bleu
from echo_pl.metrics.cider import Cider
from echo_pl.metrics.counted import GivenValues
from echo_pl.metrics.findings import FindingScores, region_completeness
from echo_pl.metrics.meteor import meteor_metric
from echo_pl.metrics.models import EmbeddingSimilarity
from echo_pl.metrics.rouge import rouge_metrics
from echo_pl.metrics.surface import length_ratio, non_word_rate, surface_metrics
from echo_pl.metrics.words import words_of

WORDS = words_of("en")
GOOD = "the lungs are clear and the heart is of normal size"


@pytest.mark.parametrize(
    "metric",
    [*rouge_metrics(WORDS), meteor_metric(WORDS), Cider(WORDS, clipped=False), Cider(WORDS, clipped=True)],
    ids=lambda metric: metric.names[0],
)
def test_an_empty_report_scores_zero_and_is_counted(metric):
    other = "no effusion is seen on either side today"
    rows = metric.rows([GOOD, "", " . "], [GOOD, GOOD, other])
    assert rows[1:].tolist() == [[0.0, 1.0], [0.0, 1.0]]
    (value,) = metric.figures(rows.sum(0)).values()
    (alone,) = metric.figures(rows[0]).values()
    assert float(alone) > 0
    assert float(value) == pytest.approx(float(alone) / 3)


def test_bleu_counts_the_words_that_an_empty_report_lacks():
    metric = Bleu(WORDS)
    whole = metric.figures(metric.rows([GOOD], [GOOD]).sum(0))["bleu_1"]
    half = metric.figures(metric.rows([GOOD, ""], [GOOD, GOOD]).sum(0))["bleu_1"]
    assert float(whole) == 1.0
    assert float(half) == pytest.approx(torch.tensor(1 - 22 / 11).exp().item())
    assert float(metric.figures(metric.rows([""], [GOOD]).sum(0))["bleu_1"]) == 0.0


def test_a_report_may_not_be_left_out():
    for metric in (*rouge_metrics(WORDS), Bleu(WORDS), Cider(WORDS, clipped=True), FindingScores(label, CONCEPTS, "test")):
        with pytest.raises(ValueError, match="2 predictions for 1 references"):
            metric.rows(["a", "b"], ["a"])


def test_findings_by_hand():
    """Hallucinated: effusion. Omitted: nodule, of which the prediction is not sure."""
    metric = FindingScores(label, CONCEPTS, "test 1")
    metric.update(
        ["the heart is enlarged. small left pleural effusion. nodule?", ""],
        ["the heart is enlarged. no pleural effusion. a nodule.", "no pleural effusion"],
    )
    found = metric.plain()
    assert found["findings_precision_micro"] == found["findings_recall_micro"] == found["findings_f1_micro"] == 0.5
    assert found["findings_f1_macro"] == pytest.approx(1 / 3)
    assert found["hallucinated_findings"] == found["omitted_findings"] == 0.5
    assert "labeller:test 1" in metric.signature
    assert "2 in all" in metric.signature
    assert [metric.better(name) for name in ("findings_f1_micro", "omitted_findings")] == [True, False]


def test_nothing_to_find_and_nothing_claimed_is_right():
    metric = FindingScores(label, CONCEPTS, "test")
    for prediction, value in (("no effusion", 1.0), ("the heart is enlarged", 0.0), ("", 0.0), (" . ", 0.0)):
        figures = metric.figures(metric.rows([prediction], ["the lungs are clear"]).sum(0))
        assert {float(figures[name]) for name in metric.names if "findings_" in name and "_m" in name} == {value}


def test_an_empty_report_has_no_finding_score_by_itself_and_does_not_change_that_of_the_others():
    metric = FindingScores(label, CONCEPTS, "test")
    normal, ill = "the lungs are clear", "the heart is enlarged"
    others = metric.rows([ill, f"{ill}. a nodule.", normal], [ill, ill, normal])
    empty = metric.rows([""], [normal])
    with_it, without = (metric.figures(rows.sum(0)) for rows in (torch.cat([others, empty]), others))
    assert 0 < float(without["findings_f1_micro"]) < 1
    for name in metric.names:
        if "_m" in name:
            assert float(with_it[name]) == float(without[name])
            assert float(metric.figures(empty.sum(0))[name]) == float(metric.figures(2 * empty.sum(0))[name]) == 0.0
            right = metric.rows([normal, ""], [normal, normal]).sum(0)
            assert float(metric.figures(right)[name]) == 1.0, "nothing to find, and a report says so"


def test_a_labeller_with_unlisted_concepts_is_an_error():
    metric = FindingScores(lambda text: {"fracture": Found("positive")}, CONCEPTS, "test")
    with pytest.raises(ValueError, match="fracture"):
        metric.update(["x"], ["y"])


def test_region_completeness_counts_known_regions_once():
    metric = region_completeness(lambda text: text.split(), ("heart", "lungs", "bones", "hila"), "words")
    metric.update(["heart heart lungs other", ""], ["heart", "heart"])
    assert metric.plain() == {"region_completeness": 0.25}


def test_surface_scores_by_hand():
    predictions = ["the the heart. heart. heart heart is normal", "", "a b c d a b c d"]
    found = {}
    for metric in surface_metrics(WORDS):
        metric.update(predictions, ["the heart is normal"] * 3)
        found |= metric.plain()
    assert found == pytest.approx(
        {"empty": 1 / 3, "length_ratio": 16 / 12, "duplicate_word_rate": (2 / 8) / 3, "repetition_rate": (1 / 5) / 3}
    )
    assert length_ratio(WORDS).better("length_ratio") is None


def test_words_of_no_training_report():
    metric = non_word_rate(WORDS, {"the", "pacemaker", "is", "seen"}, "corpus x")
    metric.update(["the pac is inemaker 12", ""], ["", ""])
    assert metric.plain() == {"non_word_rate": pytest.approx(2 / 5)}
    assert "vocabulary:corpus x, 4 words" in metric.signature
    with pytest.raises(ValueError, match="no words"):
        non_word_rate(WORDS, [], "nothing")


def test_an_embedding_is_named_after_its_model():
    metric = EmbeddingSimilarity(lambda texts: torch.tensor([[len(text), 1.0] for text in texts]), "toy", "mean pooling")
    metric.update(["ab", ""], ["ab", "ab"])
    assert metric.plain() == {"cosine_toy": pytest.approx(0.5)}
    assert metric.signature.startswith("cosine|model:toy, mean pooling|blind to negation")


def test_values_that_are_not_known_are_left_out():
    metric = GivenValues("stopped", "stopped|v1", True)
    metric.update([True, None, False, 1.0])
    assert metric.plain() == {"stopped": pytest.approx(2 / 3)}


def test_a_signature_counts_the_reports_there_are_now():
    metric = GivenValues("stopped", "stopped|v1", True)

    def counted() -> str:
        return metric.signature.removeprefix("stopped|v1|references:1 each, ")

    metric.update([True, False, True])
    metric.compute()
    assert counted() == "3 in all"
    metric([True])  # torchmetrics computes of this one alone, and puts the others back
    assert counted() == "4 in all"
    metric.compute()
    metric.reset()
    metric.update([True])
    metric.update([True])
    assert counted() == "2 in all"


def test_chinese_is_cut_by_jieba():
    pytest.importorskip("jieba", reason="pip install 'echo-pl[zh]'")
    words = words_of("zh")
    assert words.split("双肺纹理清晰，心影正常。") == ["双肺", "纹理", "清晰", "心影", "正常"]
    assert words.spaced("心影正常。") == "心影 正常 。"
    assert words.name.startswith("lower case, jieba 0.")
    rouge = {metric.names[0]: metric for metric in rouge_metrics(words)}
    for name in ("rouge_1_google", "rouge_l_google"):
        assert float(rouge[name].rows(["心影增大"], ["心影正常"])[0, 0]) == pytest.approx(0.5)
    assert "jieba" in rouge["rouge_l_paper"].signature


def test_without_jieba_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(ValueError, match=r"echo-pl\[zh\]"):
        words_of("zh")
    with pytest.raises(ValueError, match="'en' or 'zh', got 'de'"):
        words_of("de")


def test_wordnet_is_used_and_named_only_if_installed(monkeypatch):
    from echo_pl.metrics import meteor as module

    class Absent:
        def get_version(self):
            raise LookupError("a page of advice")

    monkeypatch.setattr(module, "wordnet", Absent())
    with pytest.raises(ValueError, match="needs nltk's wordnet data"):
        meteor_metric(WORDS, with_wordnet=True)

    class Lemma:
        def __init__(self, name):
            self._name = name

        def name(self):
            return self._name

    class Synset:
        def lemmas(self):
            return [Lemma("big"), Lemma("great")]

    class Present:
        def get_version(self):
            return "3.0"

        def synsets(self, word):
            return [Synset()] if word == "big" else []

    monkeypatch.setattr(module, "wordnet", Present())
    with_it, without = meteor_metric(WORDS, with_wordnet=True), meteor_metric(WORDS)
    assert "WordNet 3.0" in with_it.signature
    assert "WordNet" not in without.signature
    assert float(with_it.rows(["big heart"], ["great heart"])[0, 0]) > float(without.rows(["big heart"], ["great heart"])[0, 0])
