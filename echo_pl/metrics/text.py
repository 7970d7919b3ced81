"""Text scores of one report against one reference: pure functions over words, and thin torchmetrics classes over them.

METHOD.md 5. Knows words only: neither tokens, findings nor how a report was decoded. An empty prediction scores 0 and
is never left out of a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from echo_pl.metrics.words import cut_words, how_cut
from echo_pl.reports.sentences import split_at_marks


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence (the bit-vector recurrence of Hyyro, 2004).

    >>> longest_common_subsequence("no pleural effusion seen".split(), "no effusion is seen".split())
    3
    """
    places: dict[str, int] = {}
    for index, word in enumerate(left):
        places[word] = places.get(word, 0) | (1 << index)
    full = (1 << len(left)) - 1
    row = full  # a 0 at bit i: the row of the length table grows by one at column i
    for word in right:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(left) - row.bit_count()


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L as an F-measure (beta 1) in [0, 1], without stemming, over the report as one sequence of words.

    >>> rouge_l("No pleural effusion.", "No pleural effusion or pneumothorax.")
    0.75
    >>> rouge_l("", "No pleural effusion.")
    0.0
    """
    predicted, wanted = cut_words(prediction), cut_words(reference)
    if not predicted or not wanted:
        return 0.0
    common = longest_common_subsequence(predicted, wanted)
    return 2 * common / (len(predicted) + len(wanted))


def duplicate_word_rate(prediction: str) -> float:
    """Share of words equal to the word just before them in their sentence: how one-step failures look ("the the heart").

    Sentences may begin with the word that the last one ended with, as findings and impressions of good reports do.

    >>> duplicate_word_rate("The the heart is is normal")
    0.3333333333333333
    >>> duplicate_word_rate("Left rib fracture. Fracture of a rib.")
    0.0
    """
    return duplicate_share([cut_words(sentence) for sentence in split_at_marks(prediction)])


def duplicate_share(sentences: Sequence[Sequence[str]]) -> float:
    """:func:`duplicate_word_rate` of a text whose sentences have been split into words."""
    words = sum(map(len, sentences))
    if not words:
        return 0.0
    return sum(left == right for sentence in sentences for left, right in pairwise(sentence)) / words


def repetition_rate(prediction: str, order: int = 4) -> float:
    """Share of the n-grams of ``order`` words that stood in the same report before.

    >>> repetition_rate("no effusion is seen no effusion is seen")
    0.2
    """
    return repeated_share(cut_words(prediction), order)


def repeated_share(words: Sequence[str], order: int = 4) -> float:
    """:func:`repetition_rate` of a text that has been split."""
    grams = [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


class MeanOverReports(Metric):
    """Mean of a score per report; the base of the text metrics, summed over ranks."""

    full_state_update = False
    total: Tensor
    reports: Tensor

    def __init__(self, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("reports", torch.tensor(0), dist_reduce_fx="sum")

    def add(self, score: float) -> None:
        """Count one report."""
        self.total += score
        self.reports += 1

    def compute(self) -> Tensor:
        """Mean over all reports seen; 0 when there was none."""
        return (self.total / self.reports.clamp(min=1)).float()


class RougeL(MeanOverReports):
    """Mean :func:`rouge_l` over reports.

    >>> metric = RougeL()
    >>> metric.update(["No effusion.", ""], ["No effusion.", "No effusion."])
    >>> metric.compute()
    tensor(0.5000)
    """

    higher_is_better = True

    @property
    def signature(self) -> str:
        """Which ROUGE-L."""
        return f"rouge_l|measure:f1|stem:no|case:lower|words:{how_cut()}|mean:reports|v1"

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Add reports; predictions and references in the same order.

        Raises:
            ValueError: the two sequences differ in length.
        """
        for prediction, reference in paired(predictions, references):
            self.add(rouge_l(prediction, reference))


class DuplicateWordRate(MeanOverReports):
    """Mean :func:`duplicate_word_rate` over reports."""

    higher_is_better = False

    @property
    def signature(self) -> str:
        """Which rate."""
        return f"duplicate_word_rate|within sentences|case:lower|mean:reports|v2|words:{how_cut()}"

    def update(self, predictions: Sequence[str]) -> None:
        """Add generated reports."""
        for prediction in predictions:
            self.add(duplicate_word_rate(prediction))


class RepetitionRate(MeanOverReports):
    """Mean :func:`repetition_rate` (4-grams) over reports."""

    higher_is_better = False

    @property
    def signature(self) -> str:
        """Which rate."""
        return f"repetition_rate|order:4|case:lower|mean:reports|v1|words:{how_cut()}"

    def update(self, predictions: Sequence[str]) -> None:
        """Add generated reports."""
        for prediction in predictions:
            self.add(repetition_rate(prediction))


def paired(predictions: Sequence[Any], references: Sequence[Any]) -> zip[tuple[Any, Any]]:
    """Pair predictions with references.

    Raises:
        ValueError: they differ in number, so that a report would be left out.
    """
    if len(predictions) != len(references):
        raise ValueError(f"got {len(predictions)} predictions for {len(references)} references")
    return zip(predictions, references, strict=True)
