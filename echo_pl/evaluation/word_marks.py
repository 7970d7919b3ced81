"""Which words of two texts the other one does not have at that place: for eyes, not for scores. Knows strings only."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import groupby

Marked = tuple[tuple[str, bool], ...]
"""Stretches of a text in order, white space included, and whether the other text has them."""
_PIECE = re.compile(r"([\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+)")


def marked(first: str, second: str) -> tuple[Marked, Marked]:
    """Both texts with what they share, aligned word by word; case does not count, and nothing but words is marked.

    >>> marked("No effusion.", "no pleural effusion.")
    ((('No effusion.', True),), (('no ', True), ('pleural', False), (' effusion.', True)))
    """
    ours, theirs = _PIECE.split(first), _PIECE.split(second)  # words are at odd places, what stands between them at even ones
    own_words, other_words = ([word.lower() for word in pieces[1::2]] for pieces in (ours, theirs))
    blocks = SequenceMatcher(None, own_words, other_words, autojunk=False).get_matching_blocks()
    return (
        _stretches(ours, {block.a + step for block in blocks for step in range(block.size)}),
        _stretches(theirs, {block.b + step for block in blocks for step in range(block.size)}),
    )


def _stretches(pieces: list[str], shared: set[int]) -> Marked:
    flags = [(piece, place % 2 == 0 or place // 2 in shared) for place, piece in enumerate(pieces) if piece]
    return tuple(("".join(piece for piece, _ in run), common) for common, run in groupby(flags, key=lambda pair: pair[1]))
