"""Scores of one run with intervals, and paired tests of two runs over the same studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from tqdm.auto import tqdm

from echo_pl.evaluation.cases import Case, Sections, formatted
from echo_pl.metrics.counted import GivenValues, PairMetric, ReportScore, signature
from echo_pl.metrics.statistics import Comparison, Interval, bootstrap, compare, holm


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Sizes and seed of the bootstrap and of the randomisation test."""

    resamples: int = 1000
    """Resamples of the bootstrap."""
    rounds: int = 10_000
    """Random exchanges of the randomisation test."""
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1 or self.rounds < 1:
            raise ValueError(f"resamples and rounds must be at least 1, got {self.resamples} and {self.rounds}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must be in (0, 1), got {self.level}")


@dataclass(frozen=True, kw_only=True)
class Absent:
    """Name of an absent score, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MetricRows:
    """Metric with its rows for a run: N reports, K counts."""

    metric: ReportScore
    rows_NK: Tensor

    @property
    def of_reports(self) -> dict[str, list[float]]:
        """Every score of every report alone."""
        return {name: values.tolist() for name, values in self.metric.figures(self.rows_NK).items()}


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score of a run."""

    name: str
    interval: Interval
    signature: str
    better: bool | None
    """True if higher is better; None if neither direction is."""


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A run with its scores."""

    cases: tuple[Case, ...]
    counted: tuple[MetricRows, ...]
    scores: tuple[Score, ...]
    absent: tuple[Absent, ...] = ()

    def score(self, name: str) -> Score:
        """Score by name; raises ValueError if there is none."""
        for score in self.scores:
            if score.name == name:
                return score
        raise ValueError(f"there is no score {name!r}; there are {[score.name for score in self.scores]}")

    @property
    def of_reports(self) -> dict[str, list[float]]:
        """Every score of every report alone."""
        return {name: values for counted in self.counted for name, values in counted.of_reports.items()}


def metric_rows(
    cases: Sequence[Case], metrics: Sequence[PairMetric], sections: Sections, *, progress: bool = True
) -> list[MetricRows]:
    """Rows of every metric that reads texts."""
    predictions = [formatted(case.prediction.report, sections) for case in cases]
    references = [formatted(case.reference, sections) for case in cases]
    found = []
    with tqdm(metrics, desc="scores", unit="metric", disable=not progress) as bar:
        for metric in bar:
            bar.set_postfix_str(metric.names[0])
            found.append(MetricRows(metric=metric, rows_NK=metric.rows(predictions, references)))
    return found


def decoding_rows(cases: Sequence[Case]) -> tuple[list[MetricRows], list[Absent]]:
    """Rows of the values that come from decoding, and of unreadable reports; a value that no report has is absent."""
    decoded = [case.prediction for case in cases]
    values: dict[str, tuple[Sequence[float | None], str, bool]] = {
        "stopped": ([one.stopped for one in decoded], "stopped|ended with eos", True),
        "looped": ([one.looped for one in decoded], "looped|cut off as a repetition loop", False),
        "eos_confidence": (
            [one.eos_confidence for one in decoded],
            "eos_confidence|probability of the first eos when committed|reports with eos",
            True,
        ),
        "nfe": ([one.nfe for one in decoded], "nfe|forwards after prefill, KV writes included", False),
        "forwards_per_block": (
            [one.forwards_per_block for one in decoded],
            "forwards_per_block|KV writes left out|over blocks begun",
            False,
        ),
        "unparsable": ([float(not one.parsed) for one in decoded], "unparsable|no heading, or no text; scored as empty", False),
    }
    found, absent = [], []
    for name, (own, variant, better) in values.items():
        if any(value is not None for value in own):
            metric = GivenValues(name, f"{variant}|mean:reports|v1", better)
            found.append(MetricRows(metric=metric, rows_NK=metric.rows(own)))
        else:
            absent.append(Absent(name=name, reason="the predictions do not hold it"))
    return found, absent


def summarize(
    cases: Sequence[Case], counted: Sequence[MetricRows], absent: Sequence[Absent], resampling: Resampling, *, progress: bool = True
) -> ScoredRun:
    """Compute all scores with their intervals; raises ValueError if two metrics share the name of a score."""
    scores = []
    for one in tqdm(counted, desc="intervals", unit="metric", disable=not progress):
        intervals = bootstrap(
            one.rows_NK, one.metric.figures, resamples=resampling.resamples, level=resampling.level, seed=resampling.seed
        )
        text = signature(one.metric.variant, len(one.rows_NK))
        scores += [
            Score(name=name, interval=interval, signature=text, better=one.metric.better(name))
            for name, interval in intervals.items()
        ]
    names = [score.name for score in scores]
    if len(set(names)) < len(names):
        raise ValueError(f"two metrics share a name: {sorted({name for name in names if names.count(name) > 1})}")
    return ScoredRun(cases=tuple(cases), counted=tuple(counted), scores=tuple(scores), absent=tuple(absent))


@dataclass(frozen=True, kw_only=True)
class ScoreComparison:
    """One score of this run against the same score of the other run."""

    name: str
    other: float
    result: Comparison
    p_holm: float
    """``p`` corrected for the number of scores (Holm)."""
    better: bool | None

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``different`` where the corrected p is under 0.05, else ``no difference shown``."""
        if not self.p_holm < 0.05:
            return "no difference shown"
        if self.better is None:
            return "different"
        return "better" if (self.result.difference > 0) == self.better else "worse"


def compare_runs(this: ScoredRun, other: ScoredRun, resampling: Resampling, *, progress: bool = True) -> list[ScoreComparison]:
    """Paired tests of every score that both runs have.

    Raises:
        ValueError: the cases of the runs are not the same studies in the same order.
    """
    if [case.key for case in this.cases] != [case.key for case in other.cases]:
        raise ValueError("two runs can only be compared on the same studies in the same order")
    theirs = {counted.metric.names: counted for counted in other.counted}
    results: dict[str, Comparison] = {}
    common = [one for one in this.counted if one.metric.names in theirs]
    for one in tqdm(common, desc="paired tests", unit="metric", disable=not progress):
        results |= compare(
            one.rows_NK,
            theirs[one.metric.names].rows_NK,
            one.metric.figures,
            rounds=resampling.rounds,
            resamples=resampling.resamples,
            level=resampling.level,
            seed=resampling.seed,
        )
    corrected = holm({name: result.p for name, result in results.items()})
    return [
        ScoreComparison(
            name=name,
            other=other.score(name).interval.value,
            result=result,
            p_holm=corrected[name],
            better=this.score(name).better,
        )
        for name, result in results.items()
    ]


def worst(scored: ScoredRun, by: str, count: int) -> list[int]:
    """Places of the ``count`` cases with the worst score ``by``, the worst first; reports without the score are left out.

    Of equals the one that shares fewer words with its reference (ROUGE-L) comes first.

    Raises:
        ValueError: there is no such score, or neither direction of it is better.
    """
    better = scored.score(by).better
    if better is None:
        raise ValueError(f"neither a high nor a low {by} is better: choose another score to sort by")
    scores = scored.of_reports
    values = scores[by]
    second = scores.get("rouge_l_google", values)
    known = [place for place, value in enumerate(values) if not math.isnan(value)]
    return sorted(known, key=lambda place: (values[place] if better else -values[place], second[place]))[:count]
