"""Means over seeds and Pareto fronts, against scipy and by hand; the page shows what it is given."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from echo_pl.sweeps.pareto import Group, Mean, Measured, front, group, mean
from echo_pl.sweeps.pareto_report import SweepComparison


@pytest.mark.parametrize(("values", "half"), [([1.0, 2.0], 6.353), ([1.0, 2.0, 3.0], 2.4841), ([1.0, 2.0, 3.0, 6.0], 3.4374)])
def test_intervals_by_the_printed_table(values, half):
    """Quantiles 12.706, 4.303 and 3.182 of Student's t for one, two and three degrees of freedom."""
    found = mean(values, 0.95)
    assert (found.value - found.low, found.high - found.value) == pytest.approx((half, half), rel=1e-4)


def test_intervals_are_scipy_s():
    values = np.random.default_rng(0).normal(0.6, 0.1, 5).tolist()
    low, high = stats.t.interval(0.9, 4, loc=fmean(values), scale=stats.sem(values))
    found = mean(values, 0.9)
    assert (found.low, found.high) == pytest.approx((low, high))
    alone = mean([0.5], 0.95)
    assert alone.value == 0.5
    assert math.isnan(alone.low)


def test_seeds_of_one_objective_and_block_size_are_one_group():
    cells = [
        Measured(key=("ce", "", 8), seed=1, scores={"f1": 0.5, "tps": 9.0}),
        Measured(key=("ce", "", 8), seed=0, scores={"f1": 0.7}),
        Measured(key=("ar", "", 1), seed=0, scores={"f1": 0.9, "tps": 1.0}),
    ]
    ar, ce = group(cells, ["f1", "tps"])
    assert (ar.label, ce.label, ce.seeds) == ("ar", "ce, L=8", (0, 1))
    assert ce.means["f1"].value == pytest.approx(0.6)
    assert "tps" not in ce.means, "one of its seeds has none"
    with pytest.raises(ValueError, match=r"has seed 0 more than once"):
        group([cells[1], cells[1]], ["f1"])
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        group(cells, ["f1"], 95)


def point(name: str, quality: float, tps: float, nfe: float) -> Group:
    scores = {"f1": quality, "tps": tps, "nfe": nfe}
    means = {key: Mean(value=value, low=math.nan, high=math.nan, seeds=1) for key, value in scores.items()}
    return Group(key=(name, "", 8), seeds=(0,), means=means)


def test_the_front_is_what_nothing_beats_in_both():
    groups = [
        point("slow", 0.9, 1.0, 50.0), point("middle", 0.8, 4.0, 10.0), point("worse", 0.7, 4.0, 20.0),
        point("fast", 0.6, 8.0, 8.0), point("same", 0.6, 8.0, 8.0), point("dominated", 0.5, 2.0, 30.0),
    ]  # fmt: skip
    assert [one.key[0] for one in front(groups, "f1", "tps")] == ["slow", "middle", "fast", "same"]
    assert [one.key[0] for one in front(groups, "f1", "nfe")] == ["slow", "middle", "fast", "same"]
    assert front([Group(key=("x", "", 4), seeds=(), means={})], "f1", "tps") == []


def test_the_front_is_that_of_the_definition_by_all_pairs():
    values = np.random.default_rng(1).integers(0, 8, (40, 2))
    groups = [point(str(number), float(f1), float(tps), 100.0 - tps) for number, (f1, tps) in enumerate(values)]
    beaten = {
        i for i, a in enumerate(values) for b in values if (b >= a).all() and (b > a).any()
    }  # fmt: skip
    for speed in ("tps", "nfe"):
        assert {int(one.key[0]) for one in front(groups, "f1", speed)} == set(range(40)) - beaten


def test_the_comparison_shows_every_group_and_missing_cells():
    groups = [point("dcd", 0.8123, 4.0, 10.0), point("<ce>", 0.5, 2.0, 20.0)]
    shown = SweepComparison(
        title="Sweep lab", groups=groups, qualities=["f1"], columns=["f1", "tps", "nfe"], missing=["ce lacks seed 2"], level=0.95,
        command="compare --sweep lab",
    )  # fmt: skip
    text, page, markdown = shown.text(), shown.page(), shown.markdown("pareto.svg")
    assert "dcd, L=8" in text
    assert text.splitlines()[2].split()[-2:] == ["tps,", "nfe"]
    assert "0.812" in markdown
    for one in (text, page, markdown):
        assert "ce lacks seed 2" in one
    assert "Pareto front of f1 against nfe (fewest last): dcd, L=8" in text
    assert "&lt;ce&gt;" in page
    assert "<ce>" not in page
    root = ET.fromstring(shown.picture())
    words = "".join(root.itertext())
    assert "dcd, L=8" in words
    assert "forwards per report" in words
    assert shown.picture() == shown.picture()
