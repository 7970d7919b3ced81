"""METEOR (Lavie and Agarwal, 2007; alpha 0.9, beta 3, gamma 0.5) through nltk: exact words, Porter stems, and WordNet on request.

WordNet is data that the user installs; nothing is downloaded. nltk compares the synonyms of its third stage with the stems that its
second stage leaves, so a synonym counts only if it is its own stem ("great", not "large").
"""

from __future__ import annotations

from typing import Any

import nltk
from nltk.corpus import wordnet
from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score

from echo_pl.metrics.counted import PairRatio, mean_over_reports
from echo_pl.metrics.words import Words

_STEMMER = PorterStemmer()


class NoSynonyms:
    """A WordNet in which nothing has a synonym: leaves METEOR its stages of exact words and stems."""

    def synsets(self, word: str) -> list[Any]:
        """No synonyms."""
        return []


def meteor(predicted: list[str], wanted: list[str], synonyms: Any = None) -> float:
    """METEOR of one report; 0 without a match.

    Args:
        predicted: words of the prediction.
        wanted: words of the reference.
        synonyms: a WordNet reader; None: exact words and stems only.

    >>> round(meteor("small effusions".split(), "small effusion".split()), 4)  # 1 - 0.5 * (1 / 2) ** 3
    0.9375
    """
    return float(single_meteor_score(wanted, predicted, stemmer=_STEMMER, wordnet=synonyms or NoSynonyms()))


def meteor_metric(words: Words, *, with_wordnet: bool = False) -> PairRatio:
    """METEOR as a metric, whose signature includes WordNet; raises ValueError if WordNet is requested and missing."""
    synonyms, stages = None, "exact, Porter stem"
    if with_wordnet:
        synonyms, stages = wordnet, f"exact, Porter stem, WordNet {_wordnet_version()}"

    def score(prediction: str, reference: str) -> float:
        return meteor(words.split(prediction), words.split(reference), synonyms)

    variant = f"meteor|nltk {nltk.__version__}|matching:{stages}|alpha 0.9, beta 3, gamma 0.5|words:{words.name}|mean:reports|v1"
    return mean_over_reports("meteor", score, variant, True)


def _wordnet_version() -> str:
    try:
        return str(wordnet.get_version())
    except LookupError as error:
        raise ValueError(
            "METEOR with WordNet needs nltk's wordnet data, which is not on this machine: put it where nltk looks "
            "(python -m nltk.downloader wordnet, or NLTK_DATA=<folder>), or leave WordNet out"
        ) from error
