"""ROUGE-1, ROUGE-2 and ROUGE-L in the two variants of published report scores: pure functions over words.

``google`` is the variant of the package rouge-score (and torchmetrics), without stemming. ``paper`` is the variant of the package
rouge 1.0.1: sets of n-grams instead of multisets, full stops as sentence ends, a union of longest common subsequences. On the same
reports the two differ by a third, so a score is meaningless without its variant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from echo_pl.metrics.counted import PairRatio, mean_over_reports
from echo_pl.metrics.words import Words, cut_words

Order = Literal["1", "2", "l"]
ORDERS: tuple[Order, ...] = ("1", "2", "l")
_EPSILON = 1e-8
"""The package adds it to the denominator of its F1."""


def ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """Number of times that each run of ``order`` words occurs.

    >>> ngrams(["no", "no", "no"], 2)
    Counter({('no', 'no'): 2})
    """
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


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


def google_rouge(predicted: Sequence[str], wanted: Sequence[str], order: Order) -> float:
    """F1 of common n-grams (as multisets), or of the longest common subsequence; 0 if either text has none.

    >>> google_rouge("no pleural effusion".split(), "no effusion".split(), "1")
    0.8
    """
    if order == "l":
        common, left, right = longest_common_subsequence(predicted, wanted), len(predicted), len(wanted)
    else:
        ours, theirs = ngrams(predicted, int(order)), ngrams(wanted, int(order))
        common, left, right = (ours & theirs).total(), ours.total(), theirs.total()
    return 2 * common / (left + right) if common else 0.0


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L of texts of any language: :func:`google_rouge` over :func:`~echo_pl.metrics.words.cut_words`.

    >>> rouge_l("No pleural effusion.", "No pleural effusion or pneumothorax.")
    0.75
    >>> rouge_l("", "No pleural effusion.")
    0.0
    """
    return google_rouge(cut_words(prediction), cut_words(reference), "l")


def paper_rouge(prediction: str, reference: str, order: Order) -> float:
    """F1 of the package rouge 1.0.1 for texts whose words are separated by spaces; 0 if either text has no words.

    >>> round(paper_rouge("no effusion . no effusion .", "no effusion .", "1"), 6)
    1.0
    """
    ours, theirs = paper_sentences(prediction), paper_sentences(reference)
    if not ours or not theirs:
        return 0.0
    if order == "l":
        union: set[str] = set()
        for wanted in theirs:
            for predicted in ours:
                union |= paper_subsequence(wanted, predicted)
        common, left, right = len(union), len(set(_flat(ours))), len(set(_flat(theirs)))
    else:
        grams, wanted_grams = set(ngrams(_flat(ours), int(order))), set(ngrams(_flat(theirs), int(order)))
        common, left, right = len(grams & wanted_grams), len(grams), len(wanted_grams)
    precision = common / left if left else 0.0
    recall = common / right if right else 0.0
    return 2 * precision * recall / (precision + recall + _EPSILON)


def paper_sentences(text: str) -> list[list[str]]:
    """Split at full stops, also those of numbers, and then at spaces; other punctuation is part of its word.

    Spaces between two full stops are a sentence of one empty word, as in the package.
    """
    if not text.replace(".", " ").strip():
        return []
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def paper_subsequence(wanted: Sequence[str], predicted: Sequence[str]) -> set[str]:
    """Words of one longest common subsequence; of several the one that the package finds.

    The choice matters, because each word is counted once. Going back from both ends, a word of the reference is skipped only if
    skipping a word of the prediction would shorten the subsequence.
    """
    table = [[0] * (len(predicted) + 1) for _ in range(len(wanted) + 1)]
    for i, word in enumerate(wanted, 1):
        above, row = table[i - 1], table[i]
        for j, other in enumerate(predicted, 1):
            row[j] = above[j - 1] + 1 if word == other else max(above[j], row[j - 1])
    found = set()
    i, j = len(wanted), len(predicted)
    while i and j:
        if wanted[i - 1] == predicted[j - 1]:
            found.add(wanted[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


def rouge_metrics(words: Words) -> list[PairRatio]:
    """ROUGE-1, 2 and L in both variants: ``rouge_l_google``, ``rouge_l_paper`` and so on."""
    metrics = []
    for order in ORDERS:

        def google(prediction: str, reference: str, order: Order = order) -> float:
            return google_rouge(words.split(prediction), words.split(reference), order)

        def paper(prediction: str, reference: str, order: Order = order) -> float:
            return paper_rouge(words.spaced(prediction), words.spaced(reference), order)

        common = f"rouge_{order}|measure:f1|mean:reports"
        name = f"{common}|variant:google (rouge-score)|stem:no|words:{words.name}|v1"
        metrics.append(mean_over_reports(f"rouge_{order}_google", google, name, True))
        name = f"{common}|variant:paper (rouge 1.0.1)|n-grams:sets|sentences:full stop|words:{_spaces(words)}|v1"
        metrics.append(mean_over_reports(f"rouge_{order}_paper", paper, name, True))
    return metrics


def _spaces(words: Words) -> str:
    return "lower case, spaces" if words.name.endswith("runs") else words.name.replace("no punctuation", "punctuation kept")


def _flat(sentences: Sequence[Sequence[str]]) -> list[str]:
    return [word for sentence in sentences for word in sentence]
