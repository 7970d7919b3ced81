"""How a report looks, whatever it says: empty, too long, words twice, phrases twice, words that nobody writes.

One-step decoding fails on the surface first (METHOD.md 5). None of these scores looks at meaning, and all but the length ratio
leave the reference alone. An empty report has no faulty words, so every one of them is read beside ``empty``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from echo_pl.metrics.counted import CountedReports, MeanOfPairs, ratio
from echo_pl.metrics.text import duplicate_share, paired, repeated_share
from echo_pl.metrics.words import Words
from echo_pl.reports.sentences import split_at_marks


class WordRatio(CountedReports):
    """A ratio of two counts of words, both summed over the corpus.

    Args:
        name: of the figure.
        counts: from the words of prediction and reference to part and whole.
        words: how texts become words.
        variant: see :class:`~echo_pl.metrics.counted.ReportScore`; the words are added.
        higher_is_better: which of two values is the better one.
        sync_on_compute: sum over ranks.
    """

    def __init__(
        self,
        name: str,
        counts: Callable[[Sequence[str], Sequence[str]], tuple[int, int]],
        words: Words,
        variant: str,
        higher_is_better: bool | None,
        *,
        sync_on_compute: bool = True,
    ) -> None:
        super().__init__(2, sync_on_compute=sync_on_compute)
        self.names = (name,)
        self.counts = counts
        self.words = words
        self.variant = f"{variant}|words:{words.name}|v1"
        self.direction = higher_is_better

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Tensor:
        """Part and whole, a row a report."""
        split = self.words.split
        counts = [self.counts(split(prediction), split(reference)) for prediction, reference in paired(predictions, references)]
        return torch.tensor(counts, dtype=torch.float64).reshape(-1, 2)

    def figures(self, sums: Tensor) -> dict[str, Tensor]:
        """Part over whole; 0 where there is no whole."""
        return {self.names[0]: ratio(sums[..., 0], sums[..., 1])}


def length_ratio(words: Words) -> WordRatio:
    """Words of all predictions over words of all references: above 1 they are longer."""
    return WordRatio(
        "length_ratio", lambda ours, theirs: (len(ours), len(theirs)), words, "length_ratio|sum over sum", higher_is_better=None
    )


def non_word_rate(words: Words, vocabulary: Collection[str], name: str) -> WordRatio:
    """Share of generated words that no training report has; numbers are never counted as such.

    Args:
        words: how texts become words; the vocabulary was made with the same.
        vocabulary: words of the training reports, lower-cased.
        name: where the vocabulary comes from.

    Raises:
        ValueError: the vocabulary is empty.
    """
    known = frozenset(vocabulary)
    if not known:
        raise ValueError(f"the vocabulary {name} has no words, so that every word would be a non-word")

    def counts(ours: Sequence[str], theirs: Sequence[str]) -> tuple[int, int]:
        return sum(word not in known and not word.isdigit() for word in ours), len(ours)

    variant = f"non_word_rate|corpus|numbers:words|vocabulary:{name}, {len(known)} words"
    return WordRatio("non_word_rate", counts, words, variant, higher_is_better=False)


def surface_metrics(words: Words) -> list[CountedReports]:
    """Share of empty reports, length ratio, duplicate words, repeated phrases."""

    def of_report(name: str, function: Callable[[str], float], detail: str, version: int = 1) -> MeanOfPairs:
        def score(prediction: str, reference: str) -> float:
            return function(prediction)

        return MeanOfPairs(name, score, f"{name}|{detail}|words:{words.name}|mean:reports|v{version}", False)

    def duplicates(report: str) -> float:
        return duplicate_share([words.split(sentence) for sentence in split_at_marks(report)])

    return [
        of_report("empty", lambda report: float(not words.split(report)), "no word"),
        length_ratio(words),
        of_report("duplicate_word_rate", duplicates, "the same word twice in a row of a sentence", version=2),
        of_report("repetition_rate", lambda report: repeated_share(words.split(report)), "4-grams seen before in the report"),
    ]
