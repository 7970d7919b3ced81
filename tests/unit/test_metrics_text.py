"""Text scores of one report, and their sums over reports and ranks."""

from __future__ import annotations

import sys

import pytest
import torch
from evaluation_fakes import Parsed

from echo_pl.metrics.rouge import rouge_l
from echo_pl.metrics.suite import ReportSuite, ReportSums, report_counts, report_scores
from echo_pl.metrics.surface import duplicate_word_rate, repetition_rate
from echo_pl.metrics.words import cut_words, split_words
from echo_pl.structs import ReportText

NONE: frozenset[str] = frozenset()


def report(text: str) -> ReportText:
    return ReportText(findings=text, impression="")


class SetJudge:
    """Parses "a b" into the findings a and b; the words x and y are valid sentences, z is not."""

    signature = "words"

    def parse(self, report: ReportText) -> Parsed:
        words = report.findings.split()
        sentences = tuple((word, word != "z") for word in words if word in "xyz")
        return Parsed(frozenset(words) - set("xyz"), sentences, bool(words) and "z" not in words)


def scores(predictions: list[str], references: list[str], judge: SetJudge | None = None) -> dict[str, float]:
    metric = ReportSums(judge)
    metric.update([report(text) for text in predictions], [report(text) for text in references])
    return {name: float(value) for name, value in metric.compute().items()}


def test_an_empty_prediction_scores_zero_and_is_counted() -> None:
    assert scores(["no effusion", ""], ["no effusion", "no effusion"])["rouge_l"] == 0.5


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
    for name in ("rouge_l", "duplicate_word_rate", "repetition_rate"):
        assert "words:alphanumeric runs, ideographs by jieba 0." in ReportSuite().signatures[name]


def test_without_jieba_ideographs_are_words_and_the_signature_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    assert cut_words("胸部X光 clear") == split_words("胸部X光 clear") == ["胸", "部", "x", "光", "clear"]
    assert rouge_l("心影增大", "心影正常") == 0.5
    assert "ideographs single (no jieba)" in ReportSuite().signatures["rouge_l"]


def test_rates() -> None:
    assert duplicate_word_rate("the the the heart") == 0.5
    assert duplicate_word_rate("a rib fracture.  fracture of a rib! Rib rib?") == 1 / 9, "sentences may share a word"
    assert duplicate_word_rate("3.3 mm\nmm") == 0.0
    assert duplicate_word_rate("心。心心") == pytest.approx(1 / 3)
    assert repetition_rate("a b c d") == 0.0
    assert repetition_rate("a b c d a b c d a b c d") == pytest.approx(5 / 9)


@pytest.mark.parametrize("name", ["duplicate_word_rate", "repetition_rate"])
def test_rates_are_means_over_reports(name: str) -> None:
    loop = "a a a a a a a a"
    assert scores([loop, "plain words"], ["", ""])[name] == pytest.approx(scores([loop], [""])[name] / 2)


def test_every_report_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        scores(["a", "b"], ["a"])


def test_finding_f1_pools_counts_over_reports() -> None:
    judge = SetJudge()
    assert scores(["a b", "", "c"], ["a", "d e", "c"], judge)["finding_f1"] == pytest.approx(4 / 7)  # 2 hits, 1 extra, 2 missed
    assert scores([""], [""], judge)["finding_f1"] == 1.0
    assert scores([""], ["a"], judge)["finding_f1"] == 0.0
    assert scores(["a"], [""], judge)["finding_f1"] == 0.0


def test_an_empty_report_is_one_invalid_sentence() -> None:
    found = scores(["x y z", ""], ["", ""], SetJudge())
    assert found["valid_sentences"] == 0.5
    assert scores(["", "x"], ["", ""], SetJudge())["valid_reports"] == 0.5


def test_sums_of_two_ranks_give_the_mean_over_all_reports() -> None:
    """Ranks with different numbers of reports give the mean over reports, not the mean of their means."""
    ranks = [ReportSums(None), ReportSums(None)]
    ranks[0].update([report("a")], [report("a")])
    ranks[1].update([report("b")] * 3, [report("a")] * 3)
    merged = ReportSums(None)
    for name, reduce in merged._reductions.items():
        setattr(merged, name, reduce(torch.stack([getattr(rank, name) for rank in ranks])))
    merged._update_count = 1
    assert float(merged.compute()["rouge_l"]) == 0.25


def test_scores_of_nothing_are_zero_and_nothing_to_find_is_one() -> None:
    counts = report_counts(report(""), report(""), SetJudge())
    found = report_scores({name: torch.tensor(0.0, dtype=torch.float64) for name in counts})
    assert {name: float(value) for name, value in found.items() if value} == {"finding_f1": 1.0}
