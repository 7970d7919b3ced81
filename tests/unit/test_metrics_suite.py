from __future__ import annotations

import pytest
from evaluation_fakes import REPORTS, FakeJudge, FakeSampler, make_batch

from echo_pl.metrics.suite import ReportSuite
from echo_pl.structs import ReportText


def test_perfect_reports() -> None:
    suite = ReportSuite(FakeJudge())
    suite.update([FakeSampler().generate(make_batch([0, 1, 2]))], REPORTS, REPORTS)
    scores = suite.compute()
    for name in ("finding_f1", "valid_sentences", "valid_reports", "rouge_l"):
        assert scores[name] == 1.0
    assert scores["duplicate_word_rate"] == 0.0
    assert scores["stopped"] == 1.0


def test_empty_report_scores_zero_and_counts() -> None:
    suite = ReportSuite(FakeJudge())
    empty = ReportText(findings="", impression="")
    suite.update([FakeSampler().generate(make_batch([0, 1]))], [empty, REPORTS[1]], REPORTS[:2])
    scores = suite.compute()
    assert scores["rouge_l"] == scores["valid_reports"] == 0.5
    assert scores["finding_f1"] == pytest.approx(2 / 3)  # one found, one missed


def test_without_a_judge_there_are_no_clinical_scores() -> None:
    suite = ReportSuite(None)
    suite.update([FakeSampler().generate(make_batch([0]))], REPORTS[:1], REPORTS[:1])
    clinical = {"finding_f1", "valid_sentences", "valid_reports"}
    assert not clinical & (suite.compute().keys() | suite.signatures.keys())
    assert clinical < ReportSuite(FakeJudge()).signatures.keys()


def test_reset_and_signatures() -> None:
    suite = ReportSuite(FakeJudge())
    suite.update([FakeSampler().generate(make_batch([0]))], REPORTS[:1], REPORTS[:1])
    suite.reset()
    suite.update([FakeSampler().generate(make_batch([1, 2]))], REPORTS[1:], REPORTS[1:])
    assert suite.compute()["studies"] == 2
    assert suite.signatures["rouge_l"].startswith("rouge_l|")


def test_missing_decode_results_are_an_error() -> None:
    with pytest.raises(ValueError, match="1 decoded samples for 2 predictions"):
        ReportSuite(None).update([FakeSampler().generate(make_batch([0]))], REPORTS[:2], REPORTS[:2])
