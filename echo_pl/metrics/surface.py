"""Form of a report, whatever its content: empty, too long, duplicate words, repeated phrases, words of no training report.

One-step decoding fails in its form first (docs/explain/method.md, "Scores"). None of these scores depends on meaning, and only
the length ratio uses the reference. An empty report has no wrong words, so read every score beside ``empty``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import pairwise

from echo_pl.metrics.counted import PairRatio, mean_over_reports
from echo_pl.metrics.words import Words, cut_words
from echo_pl.reports.sentences import split_at_marks

Split = Callable[[str], list[str]]
"""From a text to its words."""


def duplicate_word_rate(text: str, split: Split = cut_words) -> float:
    """Share of words equal to the word just before them in their sentence, the typical failure of one-step decoding.

    A sentence may begin with the last word of the sentence before it, as findings and impressions of good reports do.

    >>> duplicate_word_rate("The the heart is is normal")
    0.3333333333333333
    >>> duplicate_word_rate("Left rib fracture. Fracture of a rib.")
    0.0
    """
    sentences = [split(sentence) for sentence in split_at_marks(text)]
    words = sum(map(len, sentences))
    duplicates = sum(left == right for sentence in sentences for left, right in pairwise(sentence))
    return duplicates / words if words else 0.0


def repetition_rate(text: str, split: Split = cut_words, order: int = 4) -> float:
    """Share of the n-grams of ``order`` words that occur earlier in the same report.

    >>> repetition_rate("no effusion is seen no effusion is seen")
    0.2
    """
    words = split(text)
    grams = [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


def length_ratio(words: Words) -> PairRatio:
    """Words of all predictions over words of all references; above 1 the predictions are longer."""

    def counts(prediction: str, reference: str) -> tuple[int, int]:
        return len(words.split(prediction)), len(words.split(reference))

    return PairRatio("length_ratio", counts, f"length_ratio|sum over sum|words:{words.name}|v1", None)


def non_word_rate(words: Words, vocabulary: Collection[str], name: str) -> PairRatio:
    """Share of generated words that occur in no training report; numbers never count.

    Args:
        words: how texts become words; the vocabulary was made with the same.
        vocabulary: words of the training reports, lower-cased.
        name: source of the vocabulary.

    Raises:
        ValueError: the vocabulary is empty.
    """
    known = frozenset(vocabulary)
    if not known:
        raise ValueError(f"the vocabulary {name} has no words, so that every word would be a non-word")

    def counts(prediction: str, reference: str) -> tuple[int, int]:
        ours = words.split(prediction)
        return sum(word not in known and not word.isdigit() for word in ours), len(ours)

    variant = f"non_word_rate|corpus|numbers:words|vocabulary:{name}, {len(known)} words|words:{words.name}|v1"
    return PairRatio("non_word_rate", counts, variant, False)


def surface_metrics(words: Words) -> list[PairRatio]:
    """Share of empty reports, length ratio, duplicate words, repeated phrases."""

    def of_report(name: str, function: Callable[[str], float], detail: str, version: int = 1) -> PairRatio:
        def score(prediction: str, reference: str) -> float:
            return function(prediction)

        return mean_over_reports(name, score, f"{name}|{detail}|words:{words.name}|mean:reports|v{version}", False)

    return [
        of_report("empty", lambda report: float(not words.split(report)), "no word"),
        length_ratio(words),
        of_report(
            "duplicate_word_rate",
            lambda report: duplicate_word_rate(report, words.split),
            "the same word twice in a row of a sentence",
            version=2,
        ),
        of_report("repetition_rate", lambda report: repetition_rate(report, words.split), "4-grams seen before in the report"),
    ]
