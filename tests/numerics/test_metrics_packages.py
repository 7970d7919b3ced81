"""Text scores against the packages that published figures come from: rouge-score, rouge, nltk, pycocoevalcap, scikit-learn."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from metric_reports import CONCEPTS, label, reports
from nltk.stem.porter import PorterStemmer
from nltk.translate.bleu_score import corpus_bleu
from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import precision_recall_fscore_support

from echo_pl.metrics.bleu import Bleu
from echo_pl.metrics.cider import Cider, cider_scores
from echo_pl.metrics.findings import FindingScores
from echo_pl.metrics.meteor import meteor, meteor_metric
from echo_pl.metrics.models import Perplexity
from echo_pl.metrics.rouge import (
    ORDERS,
    google_rouge,
    longest_common_subsequence,
    paper_rouge,
    paper_sentences,
    rouge_l,
    rouge_metrics,
)
from echo_pl.metrics.words import words_of

WORDS = words_of("en")
PREDICTIONS, REFERENCES = reports(1, 30), reports(2, 30)
PAIRS = list(zip(PREDICTIONS, REFERENCES, strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_google_rouge_is_rouge_score(order):
    scorer = RougeScorer([f"rouge{order.upper()}"], use_stemmer=False)
    for prediction, reference in PAIRS:
        (expected,) = scorer.score(reference, prediction).values()
        ours = google_rouge(WORDS.split(prediction), WORDS.split(reference), order)
        assert ours == pytest.approx(expected.fmeasure, abs=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_paper_rouge_is_rouge(order):
    package = Rouge(metrics=[f"rouge-{order}"])
    different = 0
    for prediction, reference in PAIRS:
        (expected,) = package.get_scores(prediction.lower(), reference.lower())
        ours = paper_rouge(WORDS.spaced(prediction), WORDS.spaced(reference), order)
        assert ours == pytest.approx(expected[f"rouge-{order}"]["f"], abs=1e-12)
        different += abs(ours - google_rouge(WORDS.split(prediction), WORDS.split(reference), order)) > 1e-3
    assert different > len(PAIRS) / 3, "the two variants must differ"


NASTY = [
    "", " ", ".", "...", "a", "a.", ".a", "-", "1.2.3.4", "A B C.", "heart.Heart", "a . b . ", "!?", "a\tb\nc", "the\u00a0heart",
    "a\x1cb. c", "_under_score_", '"quoted" (text)', "a,b;c:d", "0.5", "no. " * 40, "the " * 150, "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_rouge_of_nasty_texts_is_that_of_the_packages(order):
    """All pairs of them. A text without words scores 0; the package rouge rejects most of these."""
    google, paper = RougeScorer([f"rouge{order.upper()}"], use_stemmer=False), Rouge(metrics=[f"rouge-{order}"])
    for prediction, reference in itertools.product(NASTY, repeat=2):
        (expected,) = google.score(reference, prediction).values()
        ours = google_rouge(WORDS.split(prediction), WORDS.split(reference), order)
        assert ours == pytest.approx(expected.fmeasure, abs=1e-12), (prediction, reference)
        wanted = 0.0
        if prediction.strip(" .") and reference.strip(" ."):
            (found,) = paper.get_scores(prediction.lower(), reference.lower())
            wanted = found[f"rouge-{order}"]["f"]
        assert paper_rouge(prediction.lower(), reference.lower(), order) == pytest.approx(wanted, abs=1e-12), (
            prediction,
            reference,
        )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_of_nasty_texts_is_that_of_sacrebleu(order):
    package = pytest.importorskip("sacrebleu.metrics", reason="pip install sacrebleu")
    pairs = [*PAIRS, *itertools.product(NASTY, repeat=2)]
    predicted, gold = ([" ".join(WORDS.split(text)) for text in texts] for texts in zip(*pairs, strict=True))
    scorer = package.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
    metric = Bleu(WORDS)
    metric.update(*zip(*pairs, strict=True))
    assert metric.plain()[f"bleu_{order}"] == pytest.approx(scorer.corpus_score(predicted, [gold]).score / 100, abs=1e-12)


@pytest.mark.parametrize("text", ["a b. . c.", "a b.. c", "  a  b .", "2.5 cm"])
def test_paper_rouge_of_odd_full_stops(text):
    assert paper_sentences(text)
    (expected,) = Rouge().get_scores(text, "a b. c")
    for order in ORDERS:
        assert paper_rouge(text, "a b. c", order) == pytest.approx(expected[f"rouge-{order}"]["f"], abs=1e-12)


def test_the_metric_is_the_mean_over_reports():
    for metric in rouge_metrics(WORDS):
        metric.update(PREDICTIONS, REFERENCES)
        each = [metric.counts(*pair)[0] for pair in PAIRS]
        assert metric.plain() == {metric.names[0]: pytest.approx(sum(each) / len(each))}


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_is_the_corpus_bleu_of_nltk(order):
    metric = Bleu(WORDS)
    pairs = [(WORDS.split(prediction), WORDS.split(reference)) for prediction, reference in PAIRS]
    chosen = [pair for pair in pairs if len(pair[0]) >= 4]  # for shorter ones nltk counts an n-gram that is not there
    for ours, theirs in chosen:
        metric.update([" ".join(ours)], [" ".join(theirs)])
    assert len(chosen) > 20
    expected = corpus_bleu([[theirs] for _, theirs in chosen], [ours for ours, _ in chosen], weights=[1 / order] * order)
    assert 0 < expected < 1
    assert metric.plain()[f"bleu_{order}"] == pytest.approx(expected, abs=1e-12)


def test_bleu_of_short_predictions_is_penalised_as_in_nltk():
    metric = Bleu(WORDS)
    references = [words for words in map(WORDS.split, REFERENCES) if len(words) >= 4]
    metric.update([" ".join(words[:4]) for words in references], [" ".join(words) for words in references])
    expected = corpus_bleu([[words] for words in references], [words[:4] for words in references])
    assert metric.plain()["bleu_4"] == pytest.approx(expected, abs=1e-12)
    assert metric.plain()["bleu_4"] < 0.6


CIDER_D = [
    ("The heart is enlarged. No pleural effusion.", "The heart is enlarged. There is no pleural effusion.", 4.42535688358845),
    ("The lungs are clear.", "The lungs are clear.", 10.0),
    (
        "The lungs are clear and the heart is of normal size. The lungs are clear.",
        "The heart is of normal size and the lungs are clear.",
        4.352711556579868,
    ),
    (
        "There is a small left pleural effusion.",
        "There is a small right pleural effusion, and the heart is enlarged.",
        2.8116184095051926,
    ),
    ("Sternal wires.", "A nodule of 2.5 cm is seen in the right upper lobe.", 0.0),
    ("effusion effusion effusion effusion effusion", "Left pleural effusion.", 0.16052100264877414),
]
"""Prediction, reference and what pycocoevalcap 1.2 (``Cider().compute_score``) gives the pair among all of these references."""


def test_cider_d_is_what_pycocoevalcap_gave():
    """Its numbers, written down, so that they are looked at where the package is not installed too."""
    predictions, references, expected = (list(column) for column in zip(*CIDER_D, strict=True))
    metric = Cider(WORDS, clipped=True)
    metric.update(predictions, references)
    assert metric.plain()["cider_d"] == pytest.approx(3.6250346420537145, abs=1e-9)
    assert metric.rows(predictions, references)[:, 0].tolist() == pytest.approx(expected, abs=1e-9)


def test_cider_d_is_pycocoevalcap():
    package = pytest.importorskip("pycocoevalcap.cider.cider", reason="pip install --no-deps pycocoevalcap")
    gold = {index: [" ".join(WORDS.split(reference))] for index, reference in enumerate(REFERENCES)}
    predicted = {index: [" ".join(WORDS.split(prediction))] for index, prediction in enumerate(PREDICTIONS)}
    mean, each = package.Cider().compute_score(gold, predicted)
    metric = Cider(WORDS, clipped=True)
    metric.update(PREDICTIONS[:4], REFERENCES[:4])
    metric.update(PREDICTIONS[4:], REFERENCES[4:])
    assert metric.plain()["cider_d"] == pytest.approx(mean, abs=1e-9)
    rows = metric.rows(PREDICTIONS, REFERENCES)
    assert rows[:, 0].tolist() == pytest.approx(each.tolist(), abs=1e-9)


def test_cider_is_the_mean_cosine_of_dense_tf_idf_vectors():
    """The definition of the paper with a vocabulary of all n-grams: term frequencies are shares of the report's n-grams."""
    ours, theirs = [WORDS.split(text) for text in PREDICTIONS], [WORDS.split(text) for text in REFERENCES]
    expected = np.zeros(len(ours))
    for n in (1, 2, 3, 4):
        grams = [[" ".join(words[i : i + n]) for i in range(len(words) - n + 1)] for words in ours + theirs]
        vocabulary = sorted({gram for own in grams for gram in own})
        counts = np.array([[own.count(gram) for gram in vocabulary] for own in grams], dtype=float)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        present = (counts[len(ours) :] > 0).sum(0)
        vectors = shares * np.log(len(theirs) / np.maximum(present, 1))
        left, right = vectors[: len(ours)], vectors[len(ours) :]
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        expected += np.where(norms > 0, (left * right).sum(1) / np.maximum(norms, 1e-30), 0)
    assert cider_scores(ours, theirs, clipped=False) == pytest.approx((10 * expected / 4).tolist(), abs=1e-9)


def by_hand_meteor(predicted: list[str], wanted: list[str]) -> float:
    """Words are matched from the ends, first as they are, then as stems; a chunk is a run that is adjacent in both."""
    stem = PorterStemmer().stem
    free, matches = list(range(len(wanted))), []
    for key in (lambda word: word, stem):
        taken = {ours for ours, _ in matches}
        for ours in reversed([i for i in range(len(predicted)) if i not in taken]):
            same = [theirs for theirs in free if key(wanted[theirs]) == key(predicted[ours])]
            if same:
                matches.append((ours, same[-1]))
                free.remove(same[-1])
    if not matches:
        return 0.0
    matches.sort()
    chunks = 1 + sum((b[0] - a[0], b[1] - a[1]) != (1, 1) for a, b in itertools.pairwise(matches))
    precision, recall = len(matches) / len(predicted), len(matches) / len(wanted)
    return (1 - 0.5 * (chunks / len(matches)) ** 3) * precision * recall / (0.9 * precision + 0.1 * recall)


def test_meteor_is_its_formula():
    expected = [by_hand_meteor(WORDS.split(prediction), WORDS.split(reference)) for prediction, reference in PAIRS]
    assert [meteor(WORDS.split(p), WORDS.split(r)) for p, r in PAIRS] == pytest.approx(expected, abs=1e-12)
    metric = meteor_metric(WORDS)
    metric.update(PREDICTIONS, REFERENCES)
    assert metric.plain() == {"meteor": pytest.approx(sum(expected) / len(expected))}
    assert "exact, Porter stem|" in metric.signature


def test_finding_scores_are_those_of_scikit_learn():
    metric = FindingScores(label, CONCEPTS, "test")
    metric.update(PREDICTIONS, REFERENCES)
    ours, theirs = (
        np.array([[c in metric.found(text) for c in CONCEPTS] for text in texts]) for texts in (PREDICTIONS, REFERENCES)
    )
    found = metric.plain()
    for average in ("micro", "macro"):
        precision, recall, f1, _ = precision_recall_fscore_support(theirs, ours, average=average, zero_division=0)
        expected = {"precision": precision, "recall": recall, "f1": f1}
        assert 0.2 < f1 < 1
        assert {name: found[f"findings_{name}_{average}"] for name in expected} == pytest.approx(expected)
    assert found["hallucinated_findings"] == pytest.approx((ours & ~theirs).sum() / len(ours))
    assert found["omitted_findings"] == pytest.approx((theirs & ~ours).sum() / len(ours))


def test_perplexity_of_the_corpus_weighs_tokens_and_of_reports_weighs_reports():
    surprises = {"a": (3.0, 1), "b b": (1.0, 2), "": (99.0, 9)}
    metric = Perplexity(surprises.__getitem__, "table")
    assert torch.isnan(metric.figures(metric.rows([""], [""]).sum(0))["perplexity"])
    hopeless = Perplexity(lambda text: (1e4, 1), "table")
    assert hopeless.rows(["a"], [""])[0, 2] == math.inf
    metric.update(["a", "b b", ""], ["", "", ""])
    assert metric.plain() == pytest.approx(
        {"perplexity": math.exp(4 / 3), "perplexity_per_report": (math.exp(3) + math.exp(0.5)) / 2}
    )


PLAIN_WORDS = ["the", "heart", "is", "enlarged", "no", "pleural", "effusion", "or", "pneumothorax", "lungs", "are", "clear"]


def random_words(generator: random.Random, most: int) -> list[str]:
    return [generator.choice(PLAIN_WORDS) for _ in range(generator.randrange(most))]


def table_length(left: list[str], right: list[str]) -> int:
    """The quadratic table, as in any textbook."""
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@pytest.mark.parametrize("seed", range(20))
def test_longest_common_subsequence_equals_the_table(seed: int) -> None:
    generator = random.Random(seed)
    left, right = random_words(generator, 90), random_words(generator, 90)
    assert longest_common_subsequence(left, right) == table_length(left, right)


@pytest.mark.parametrize("seed", range(20))
def test_rouge_l_equals_rouge_score(seed: int) -> None:
    generator = random.Random(100 + seed)
    prediction = ", ".join(random_words(generator, 40)).capitalize() + "."
    reference = " ".join(random_words(generator, 40)) + " (heart-size_2)."
    expected = RougeScorer(["rougeL"], use_stemmer=False).score(reference, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, reference) == pytest.approx(expected, abs=1e-12)
