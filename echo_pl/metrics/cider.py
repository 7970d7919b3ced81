"""CIDEr and CIDEr-D (Vedantam et al., CVPR 2015): n-grams weighted by their inverse document frequency in the references.

CIDEr-D is the CIDEr of the package pycocoevalcap: clipped counts and a penalty on a difference in length, so that repeated words do
not raise the score. Both use words without stemming.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from echo_pl.metrics.counted import PairMetric, mean_rows, paired
from echo_pl.metrics.rouge import ngrams
from echo_pl.metrics.words import Words

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0
Gram = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Vector:
    """N-gram weights of a report, by order."""

    weights: tuple[Mapping[Gram, float], ...]
    norms: tuple[float, ...]
    length: int
    """Number of 2-grams, the length in the package."""


def document_frequencies(references: Sequence[Sequence[str]]) -> Counter[Gram]:
    """Number of reference reports with each n-gram."""
    frequencies: Counter[Gram] = Counter()
    for words in references:
        frequencies.update({gram for order in ORDERS for gram in ngrams(words, order)})
    return frequencies


def cider_vector(words: Sequence[str], frequencies: Mapping[Gram, int], documents: int) -> Vector:
    """Counts times log(documents / frequency); an n-gram of no reference has the weight of one in a single reference."""
    weights = []
    for order in ORDERS:
        counts = ngrams(words, order)
        weights.append({gram: count * math.log(documents / max(1, frequencies.get(gram, 0))) for gram, count in counts.items()})
    norms = tuple(math.sqrt(sum(value * value for value in own.values())) for own in weights)
    return Vector(weights=tuple(weights), norms=norms, length=max(0, len(words) - 1))


def cider_similarity(predicted: Vector, wanted: Vector, *, clipped: bool) -> float:
    """Mean over the four orders of the cosine, times 10; ``clipped`` gives CIDEr-D."""
    total = 0.0
    for ours, theirs, norm, other in zip(predicted.weights, wanted.weights, predicted.norms, wanted.norms, strict=True):
        if norm == 0 or other == 0:
            continue
        product = 0.0
        for gram, weight in ours.items():
            reference = theirs.get(gram, 0.0)
            product += (min(weight, reference) if clipped else weight) * reference
        total += product / (norm * other)
    penalty = math.exp(-((predicted.length - wanted.length) ** 2) / (2 * SIGMA**2)) if clipped else 1.0
    return 10.0 * penalty * total / len(ORDERS)


def cider_scores(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], *, clipped: bool) -> list[float]:
    """One score per report, between 0 and 10; the document frequencies are those of ``references``.

    With a single reference every weight is log(1) = 0, and so is the score.
    """
    frequencies = document_frequencies(references)

    def vector(words: Sequence[str]) -> Vector:
        return cider_vector(words, frequencies, len(references))

    return [cider_similarity(vector(ours), vector(theirs), clipped=clipped) for ours, theirs in paired(predictions, references)]


class Cider(PairMetric):
    """Mean CIDEr (``cider``) or CIDEr-D (``cider_d``) over reports, with the document frequencies of all references of all ranks.

    A bootstrap over :meth:`rows` resamples reports and keeps the document frequencies.

    Args:
        words: splitter of texts.
        clipped: compute CIDEr-D.
    """

    direction = True
    pairs: list[Tensor] | Tensor

    def __init__(self, words: Words, *, clipped: bool) -> None:
        super().__init__()
        self.words = words
        self.clipped = clipped
        self.names = ("cider_d" if clipped else "cider",)
        how = f"clipped, sigma {SIGMA:g}" if clipped else "plain cosine"
        self.variant = f"{self.names[0]}|n:1-4|idf:these references|{how}|times 10|stem:no|words:{words.name}|mean:reports|v1"
        # Ranks exchange tensors only, so words are sent as bytes. The bytes are floats, because torchmetrics replaces the state of
        # a rank without reports by an empty tensor of the metric's own type.
        self.add_state("pairs", [], dist_reduce_fx="cat")

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Tensor:
        """Score and 1 for each report; the given reports are the reference set."""
        ours, theirs = ([self.words.split(text) for text in texts] for texts in (predictions, references))
        return mean_rows(cider_scores(ours, theirs, clipped=self.clipped))

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Add reports; raises ValueError if the two sequences differ in length."""
        assert isinstance(self.pairs, list)
        for prediction, reference in paired(predictions, references):
            line = json.dumps([self.words.split(prediction), self.words.split(reference)]) + "\n"
            self.pairs.append(torch.tensor(list(line.encode("ascii")), dtype=torch.float32, device=self.device))
            self.reports += 1

    def total(self) -> Tensor:
        """Score and 1, summed over all reports, which are the reference set; ranks exchange reports, not sums."""
        if not len(self.pairs):
            return torch.zeros(2, dtype=torch.float64)
        characters = bytes(dim_zero_cat(self.pairs).to(torch.uint8).tolist())
        pairs = [json.loads(line) for line in characters.splitlines()]
        scores = cider_scores([ours for ours, _ in pairs], [theirs for _, theirs in pairs], clipped=self.clipped)
        return mean_rows(scores).sum(0)
