from __future__ import annotations

import pytest
from evaluation_fakes import Parsed

from echo_pl.metrics.clinical import FindingF1, ValidReports, ValidSentences

NONE: frozenset[str] = frozenset()


def finding_f1(predicted: list[set[str]], wanted: list[set[str]]) -> float:
    metric = FindingF1()
    metric.update([frozenset(labels) for labels in predicted], [frozenset(labels) for labels in wanted])
    return float(metric.compute())


def test_counts_are_pooled_over_reports() -> None:
    predicted, wanted = [{"a", "b"}, set(), {"c"}], [{"a"}, {"d", "e"}, {"c"}]  # 2 hits, 1 extra, 2 missed
    assert finding_f1(predicted, wanted) == pytest.approx(4 / 7)


def test_nothing_to_find() -> None:
    assert finding_f1([set()], [set()]) == 1.0
    assert finding_f1([set()], [{"a"}]) == 0.0
    assert finding_f1([{"a"}], [set()]) == 0.0


def test_an_empty_report_is_one_invalid_sentence() -> None:
    metric = ValidSentences()
    metric.update([Parsed(NONE, (("x", True), ("y", True), ("z", False)), False), Parsed(NONE, (), False)])
    assert float(metric.compute()) == 0.5


def test_valid_reports() -> None:
    metric = ValidReports()
    metric.update([Parsed(NONE, (), False), Parsed(NONE, (("x", True),), True)])
    assert float(metric.compute()) == 0.5
