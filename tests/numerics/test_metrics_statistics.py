"""Intervals and tests against enumeration by hand and against scipy."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch
from metric_reports import reports

from echo_pl.metrics import statistics
from echo_pl.metrics.bleu import Bleu
from echo_pl.metrics.counted import GivenValues, mean_rows
from echo_pl.metrics.statistics import bootstrap, compare, holm
from echo_pl.metrics.words import words_of


def mean(sums):
    return {"mean": sums[..., 0] / sums[..., 1]}


def test_the_interval_is_that_of_all_resamples():
    values = [0.03, 0.11, 0.42, 0.55, 0.97]
    every = [sum(drawn) / 5 for drawn in itertools.product(values, repeat=5)]
    found = bootstrap(mean_rows(values), mean, resamples=40_000, level=0.9)["mean"]
    assert found.value == pytest.approx(0.416)
    assert (found.low, found.high) == pytest.approx((np.quantile(every, 0.05), np.quantile(every, 0.95)), abs=0.015)


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(3).beta(2, 3, size=80)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    ours = bootstrap(mean_rows(values.tolist()), mean, resamples=20_000)["mean"]
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=2e-3)


def test_a_corpus_score_is_computed_again_in_every_resample(monkeypatch):
    """Against a loop that resamples texts; and the chunks of the work do not matter."""
    metric = Bleu(words_of("en"))
    predictions, references = reports(1, 12), reports(2, 12)
    rows = metric.rows(predictions, references)
    found = bootstrap(rows, metric.figures, resamples=200, seed=5)
    drawn = torch.randint(12, (200, 12), generator=torch.Generator().manual_seed(5))
    values = []
    for indices in drawn.tolist():
        again = Bleu(words_of("en"))
        again.update([predictions[i] for i in indices], [references[i] for i in indices])
        values.append(again.plain()["bleu_2"])
    assert (found["bleu_2"].low, found["bleu_2"].high) == pytest.approx(np.quantile(values, [0.025, 0.975]))
    monkeypatch.setattr(statistics, "_ELEMENTS", 100)
    assert bootstrap(rows, metric.figures, resamples=200, seed=5)["bleu_2"].value == found["bleu_2"].value
    assert bootstrap(rows, metric.figures, resamples=200, seed=6) != found


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_test_is_that_of_scipy_and_of_counting(seed):
    generator = np.random.default_rng(seed)
    first, second = generator.normal(0.3, 1, 9), generator.normal(0, 1, 9)
    ours = compare(mean_rows(first.tolist()), mean_rows(second.tolist()), mean)["mean"]
    theirs = scipy.stats.permutation_test(
        (first, second), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert ours.exact
    assert ours.difference == pytest.approx(theirs.statistic)
    assert ours.p == pytest.approx(theirs.pvalue)
    gaps = [Fraction(float(a)) - Fraction(float(b)) for a, b in zip(first, second, strict=True)]
    signs = list(itertools.product((1, -1), repeat=9))
    hits = sum(abs(sum(s * g for s, g in zip(sign, gaps, strict=True))) >= abs(sum(gaps)) for sign in signs)
    assert ours.p == pytest.approx(hits / len(signs))


def test_the_random_test_comes_near_the_exact_one():
    generator = np.random.default_rng(1)
    first, second = (mean_rows(generator.normal(shift, 1, 12).tolist()) for shift in (0.8, 0.0))
    exact = compare(first, second, mean)["mean"]
    near = compare(first, second, mean, rounds=4000)["mean"]
    assert exact.exact
    assert not near.exact
    assert 0.001 < exact.p < 0.5
    assert near.p == pytest.approx(exact.p, abs=0.02)
    assert near == compare(first, second, mean, rounds=4000)["mean"], "seeded"


def test_a_corpus_figure_is_tested_by_exchanging_reports():
    """BLEU of every one of the 2^5 mixtures of two runs, computed from texts."""
    references, one, other = reports(2, 5), reports(1, 5), reports(3, 5)
    metric = Bleu(words_of("en"))
    found = compare(metric.rows(one, references), metric.rows(other, references), metric.figures)["bleu_1"]

    def bleu(texts: list[str]) -> float:
        again = Bleu(words_of("en"))
        again.update(texts, references)
        return again.plain()["bleu_1"]

    gaps = []
    for exchanged in itertools.product((False, True), repeat=5):
        mixed = [(b, a) if e else (a, b) for a, b, e in zip(one, other, exchanged, strict=True)]
        gaps.append(bleu([a for a, _ in mixed]) - bleu([b for _, b in mixed]))
    assert found.difference == pytest.approx(gaps[0])
    assert found.p == sum(abs(gap) >= abs(gaps[0]) - 1e-12 for gap in gaps) / 32


def test_a_run_against_itself():
    rows = mean_rows([0.1, 0.5, 0.9])
    found = compare(rows, rows, mean)["mean"]
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_test_of_no_difference_rejects_as_often_as_it_says():
    generator = np.random.default_rng(0)
    rejected = 0
    for _ in range(200):
        first, second = (mean_rows(generator.normal(0, 1, 8).tolist()) for _ in range(2))
        rejected += compare(first, second, mean, resamples=1)["mean"].p <= 0.1
    assert 8 <= rejected <= 34, "200 trials at 0.1, four standard deviations"


def test_exchanges_without_a_value_do_not_make_a_difference_likelier():
    """Each run has the value for one report, another one: of the four exchanges of these two, two leave a run without any."""
    metric = GivenValues("certainty", "certainty|v1", True)
    first, second = metric.rows([0.9, None, None]), metric.rows([None, 0.1, None])
    assert compare(first, second, metric.figures)["certainty"].p == 1.0
    whole = [metric.rows(values) for values in ([0.9, 0.8, 0.7], [0.1, 0.2, 0.3])]
    assert compare(*whole, metric.figures)["certainty"].p == 2 / 8


def test_holm_is_stepwise():
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == {"a": pytest.approx(0.06), "b": 0.03, "c": 0.06}


def test_incomparable_runs_are_an_error():
    with pytest.raises(ValueError, match="same reports: got 2 and 3"):
        compare(mean_rows([1, 2]), mean_rows([1, 2, 3]), mean)
    with pytest.raises(ValueError, match="no reports"):
        bootstrap(mean_rows([]), mean)
    with pytest.raises(ValueError, match="level in"):
        bootstrap(mean_rows([1.0]), mean, level=1.0)
