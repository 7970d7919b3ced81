"""BLEU-1 to BLEU-4 of a corpus with one reference per report, without smoothing (Papineni et al., ACL 2002)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from echo_pl.metrics.counted import PairMetric, count_rows, paired
from echo_pl.metrics.rouge import ngrams
from echo_pl.metrics.words import Words

ORDERS = (1, 2, 3, 4)


def bleu_counts(predicted: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Matching n-grams for n = 1..4 (each at most as often as in the reference), then all n-grams, then both lengths."""
    ours = [ngrams(predicted, order) for order in ORDERS]
    matches = [(own & ngrams(wanted, order)).total() for own, order in zip(ours, ORDERS, strict=True)]
    return [*matches, *(own.total() for own in ours), len(predicted), len(wanted)]


class Bleu(PairMetric):
    """``bleu_1`` to ``bleu_4``: counts are summed over the corpus, then multiplied; BLEU-n weighs orders 1 to n alike.

    A single report without a match of four words has a BLEU-4 of 0, so BLEU-4 is meaningful for corpora only. A report of fewer
    than n words has no n-grams (nltk counts one for it).

    >>> from echo_pl.metrics.words import words_of
    >>> metric = Bleu(words_of("en"))
    >>> metric.update(["no pleural effusion is seen"], ["no pleural effusion was seen"])
    >>> {name: round(value, 4) for name, value in metric.plain().items()}
    {'bleu_1': 0.8, 'bleu_2': 0.6325, 'bleu_3': 0.5109, 'bleu_4': 0.0}
    """

    names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
    direction = True

    def __init__(self, words: Words) -> None:
        super().__init__(10)
        self.words = words
        self.variant = f"bleu|corpus|smoothing:none|brevity penalty:yes|words:{words.name}|v1"

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Tensor:
        """:func:`bleu_counts`, a row for each report."""
        split = self.words.split
        counts = [bleu_counts(split(prediction), split(reference)) for prediction, reference in paired(predictions, references)]
        return count_rows(counts, 10)

    def figures(self, sums: Tensor) -> dict[str, Tensor]:
        """Brevity penalty times the geometric mean of the precisions; 0 if an order has no match."""
        matches, totals = sums[..., :4], sums[..., 4:8]
        length, wanted = sums[..., 8], sums[..., 9]
        brevity = torch.where(length >= wanted, torch.ones_like(length), (1 - wanted / length.clamp(min=1e-300)).exp())
        logs = (matches / totals.clamp(min=1.0)).log()  # -inf where nothing matches, which comes out as 0
        means = logs.cumsum(-1) / torch.arange(1, 5, dtype=sums.dtype, device=sums.device)
        scores = brevity[..., None] * means.exp()
        return {name: scores[..., index] for index, name in enumerate(self.names)}
