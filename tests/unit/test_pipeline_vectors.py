"""Vectors that a killed search leaves behind: read again, not made again, and the search finds the same."""

from __future__ import annotations

import stat
from collections.abc import Sequence

import pytest

from echo_pl.data.pipeline.recipes import EmbeddingSearch
from echo_pl.reports.embeddings import NgramEmbedder, Vectors

TEXTS = [(str(n), f"Small left effusion, seen {n % 7} times, beside the {'heart' if n % 3 else 'hilum'}.") for n in range(40)]


class Counting(NgramEmbedder):
    embedded = 0
    most = 10**9

    def embed(self, texts: Sequence[str]) -> Vectors:
        if self.embedded + len(texts) > self.most:
            raise InterruptedError
        self.embedded += len(texts)
        return super().embed(texts)


def test_a_search_that_was_ended_embeds_only_the_rest(tmp_path):
    wanted = list(EmbeddingSearch(Counting()).find(TEXTS, [("held", TEXTS[0][1])], 0.95, tmp_path / "whole"))
    assert wanted
    ended, again = Counting(), Counting()
    ended.most = 1
    with pytest.raises(InterruptedError):
        list(EmbeddingSearch(ended).find(TEXTS, [("held", TEXTS[0][1])], 0.95, tmp_path / "kept"))
    assert ended.embedded == 1
    assert list(EmbeddingSearch(again).find(TEXTS, [("held", TEXTS[0][1])], 0.95, tmp_path / "kept")) == wanted
    assert again.embedded == len(TEXTS)
    third = Counting()
    assert list(EmbeddingSearch(third).find(TEXTS, [("held", TEXTS[0][1])], 0.95, tmp_path / "kept")) == wanted
    assert third.embedded == 0
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "kept").iterdir()} == {0o600}
