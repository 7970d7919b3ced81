from __future__ import annotations

import pytest
from evaluation_fakes import Parsed

from echo_pl.metrics.clinical import FindingF1, FindingPrecision, FindingRecall, ValidReports, ValidSentences

NONE: frozenset[str] = frozenset()


def score(metric_class: type, predicted: list[set[str]], wanted: list[set[str]]) -> float:
    metric = metric_class()
    metric.update([frozenset(labels) for labels in predicted], [frozenset(labels) for labels in wanted])
    return float(metric.compute())


def test_counts_are_pooled_over_reports() -> None:
    predicted, wanted = [{"a", "b"}, set(), {"c"}], [{"a"}, {"d"}, {"c"}]  # 2 hits, 1 extra, 1 missed
    assert score(FindingPrecision, predicted, wanted) == pytest.approx(2 / 3)
    assert score(FindingRecall, predicted, wanted) == pytest.approx(2 / 3)
    assert score(FindingF1, predicted, wanted) == pytest.approx(2 / 3)


@pytest.mark.parametrize("metric_class", [FindingF1, FindingPrecision, FindingRecall])
def test_nothing_to_find(metric_class: type) -> None:
    assert score(metric_class, [set()], [set()]) == 1.0
    assert score(metric_class, [set()], [{"a"}]) == 0.0
    assert score(metric_class, [{"a"}], [set()]) == 0.0


def test_an_empty_report_is_one_invalid_sentence() -> None:
    metric = ValidSentences()
    metric.update([Parsed(NONE, (("x", True), ("y", True), ("z", False)), False), Parsed(NONE, (), False)])
    assert float(metric.compute()) == 0.5


def test_valid_reports() -> None:
    metric = ValidReports()
    metric.update([Parsed(NONE, (), False), Parsed(NONE, (("x", True),), True)])
    assert float(metric.compute()) == 0.5
