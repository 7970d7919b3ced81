"""Text scores against independent definitions: the rouge_score package and the textbook table."""

from __future__ import annotations

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from echo_pl.metrics.rouge import longest_common_subsequence, rouge_l

WORDS = ["the", "heart", "is", "enlarged", "no", "pleural", "effusion", "or", "pneumothorax", "lungs", "are", "clear"]


def random_words(generator: random.Random, most: int) -> list[str]:
    return [generator.choice(WORDS) for _ in range(generator.randrange(most))]


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
