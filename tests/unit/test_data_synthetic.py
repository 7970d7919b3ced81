"""The procedural corpus: reproducible study by study, and its findings can be seen."""

from __future__ import annotations

import numpy as np
import pytest

from echo_pl.data.synthetic.drawing import draw_chest
from echo_pl.data.synthetic.synthetic import SyntheticCorpus


def test_a_study_depends_on_seed_split_and_index_alone():
    one, other = SyntheticCorpus(seed=3), SyntheticCorpus(seed=3)
    list(other.studies("val", 5))
    a, b = one.study("train", 17), other.study("train", 17)
    assert (a.key, a.normalized, a.raw, a.labels, a.meta) == (b.key, b.normalized, b.raw, b.labels, b.meta)
    assert a.images[0].tobytes() == b.images[0].tobytes()
    for different in (SyntheticCorpus(seed=4).study("train", 17), one.study("val", 17), one.study("train", 18)):
        assert different.images[0].tobytes() != a.images[0].tobytes()


def test_rates():
    counts = [len(study.labels) for study in SyntheticCorpus(seed=0).studies("train", 800)]
    assert 1.6 < np.mean(counts) < 2.2
    assert 0.10 < np.mean(np.array(counts) == 0) < 0.20
    assert max(counts) <= 5


def all_findings() -> list[tuple[str, str]]:
    findings = SyntheticCorpus().grammar.findings.values()
    return [(finding.name, size) for finding in findings for size in finding.sizes or ("",)]


def mean_image(findings: dict[str, str]) -> np.ndarray:
    drawn = [draw_chest(findings, 64, np.random.default_rng(seed)) for seed in range(8)]
    return np.mean(drawn, axis=0)


def test_every_finding_and_size_shows():
    pictures = {finding: mean_image(dict([finding])) for finding in all_findings()}
    pictures[("", "")] = mean_image({})
    names = list(pictures)
    for i, one in enumerate(names):
        for other in names[:i]:
            difference = np.abs(pictures[one] - pictures[other])
            assert (difference > 20).sum() >= 8, (one, other)


@pytest.mark.parametrize("size", [64, 112])
def test_image_size(size):
    assert SyntheticCorpus(image_size=size).study("train", 0).images[0].size == (size, size)


def test_bad_options():
    with pytest.raises(ValueError, match="image_size must be at least 32"):
        SyntheticCorpus(image_size=8)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        SyntheticCorpus(seed=-1)
    with pytest.raises(ValueError, match="split must be one of"):
        SyntheticCorpus().study("dev", 0)


def test_the_recipe_of_a_corpus_stays():
    """A new digest makes every corpus another one: only wordings, regions' sentences and rates may change it."""
    assert SyntheticCorpus().options["grammar"] == "58640c2ca957"
