from __future__ import annotations

import sys

import pytest
import torch

from echo_pl.metrics.text import (
    DuplicateWordRate,
    RepetitionRate,
    RougeL,
    duplicate_word_rate,
    repetition_rate,
    rouge_l,
)
from echo_pl.metrics.words import cut_words, split_words


def test_an_empty_prediction_scores_zero_and_is_counted() -> None:
    metric = RougeL()
    metric.update(["no effusion"], ["no effusion"])
    metric.update([""], ["no effusion"])
    assert float(metric.compute()) == 0.5


def test_an_empty_text_has_no_rate() -> None:
    assert rouge_l("", "") == 0.0
    assert duplicate_word_rate("") == 0.0
    assert repetition_rate("") == 0.0


def test_ideographs_are_cut_by_jieba() -> None:
    pytest.importorskip("jieba", reason="pip install 'echo-pl[zh]'")
    assert cut_words("心影正常, 双肺纹理清晰 (X光).") == ["心影", "正常", "双肺", "纹理", "清晰", "x", "光"]
    assert rouge_l("心影增大", "心影正常") == 0.5
    assert rouge_l("心影增大", "双影正常") == 0.0, "no word in common, though an ideograph"
    assert duplicate_word_rate("心影心影正常") == pytest.approx(1 / 3)
    for metric in (RougeL(), DuplicateWordRate(), RepetitionRate()):
        assert "words:alphanumeric runs, ideographs by jieba 0." in metric.signature


def test_without_jieba_ideographs_are_words_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    assert cut_words("胸部X光 clear") == split_words("胸部X光 clear") == ["胸", "部", "x", "光", "clear"]
    assert rouge_l("心影增大", "心影正常") == 0.5
    assert "ideographs single (no jieba)" in RougeL().signature


def test_rates() -> None:
    assert duplicate_word_rate("the the the heart") == 0.5
    assert duplicate_word_rate("a rib fracture.  fracture of a rib! Rib rib?") == 1 / 9, "sentences may share a word"
    assert duplicate_word_rate("3.3 mm\nmm") == 0.0
    assert duplicate_word_rate("心。心心") == pytest.approx(1 / 3)
    assert repetition_rate("a b c d") == 0.0
    assert repetition_rate("a b c d a b c d a b c d") == pytest.approx(5 / 9)


@pytest.mark.parametrize("metric", [DuplicateWordRate(), RepetitionRate()])
def test_rates_are_means_over_reports(metric: DuplicateWordRate | RepetitionRate) -> None:
    loop = "a a a a a a a a"
    metric.update([loop])
    alone = metric.compute()
    metric.update(["plain words"])
    assert torch.isclose(metric.compute(), alone / 2)


def test_a_report_may_not_be_left_out() -> None:
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        RougeL().update(["a", "b"], ["a"])


def test_states_are_summed_over_ranks() -> None:
    """Two ranks with different numbers of reports give the mean over all reports, not the mean of their means."""
    ranks = [RougeL(), RougeL()]
    ranks[0].update(["a"], ["a"])
    ranks[1].update(["b", "b", "b"], ["a", "a", "a"])
    merged = RougeL()
    for name, reduce in merged._reductions.items():
        setattr(merged, name, reduce(torch.stack([getattr(rank, name) for rank in ranks])))
    merged._update_count = 1
    assert float(merged.compute()) == 0.25
