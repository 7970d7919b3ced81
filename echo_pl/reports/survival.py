"""What of an English sentence must be in its Chinese translation: the same numbers, and each side as often. Knows strings only."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Final

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NUMBER_WORDS: Final[Mapping[str, str]] = {
    word: str(number)
    for number, words in enumerate(
        (
            ("zero",),
            ("one", "first", "single"),
            ("two", "second", "both", "twice"),
            ("three", "third"),
            ("four", "fourth"),
            ("five", "fifth"),
            ("six", "sixth"),
            ("seven", "seventh"),
            ("eight", "eighth"),
            ("nine", "ninth"),
            ("ten", "tenth"),
            ("eleven", "eleventh"),
            ("twelve", "twelfth"),
        )
    )
    for word in words
}
"""Numbers in words: a translation may write them in digits, but need not."""

_LEFT = re.compile(r"\b(?:(?i:left(?:ward|wards|sided)?|levo\w*)|LUL|LLL|LIJ|LV|LA)\b")
_RIGHT = re.compile(r"\b(?:(?i:right(?:ward|wards|sided)?|dextro\w*)|RUL|RML|RLL|RIJ|RV|RA)\b")


def numbers(text: str) -> Counter[str]:
    """The numbers in digits, full-width digits among them.

    >>> sorted(numbers("2 x 3.5 cm at T8").elements())
    ['2', '3.5', '8']
    """
    return Counter(_NUMBER.findall(unicodedata.normalize("NFKC", text)))


def lost(english: str, chinese: str) -> str | None:
    """What did not survive a translation: ``numbers``, ``laterality``, or None where nothing is lost.

    Numbers in digits must be the same; one that the English has as a word may also be in digits. 左 and 右 must be as often as left
    and right are, with their abbreviations, levo- and dextro-.

    >>> lost("A 4 mm nodule in the left lung.", "左肺4毫米结节。"), lost("Left effusion.", "右侧胸腔积液。")
    (None, 'laterality')
    """
    wanted, found = numbers(english), numbers(chinese)
    words = Counter(_NUMBER_WORDS[word] for word in re.findall(r"[a-z]+", english.lower()) if word in _NUMBER_WORDS)
    if wanted - found or found - wanted - words:
        return "numbers"
    sides = (len(_LEFT.findall(english)), len(_RIGHT.findall(english)))
    return None if sides == (chinese.count("左"), chinese.count("右")) else "laterality"
