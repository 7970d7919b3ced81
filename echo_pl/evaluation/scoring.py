"""Score the cases of one run with many metrics, with intervals; and two runs over the same studies against each other.

Knows metrics by their rows and figures only; neither files nor models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from tqdm.auto import tqdm

from echo_pl.evaluation.cases import Case, Sections, formatted
from echo_pl.evaluation.radeval_backend import Absent
from echo_pl.metrics.counted import GivenValues, PairMetric, ReportScore, signature
from echo_pl.metrics.statistics import Comparison, Interval, bootstrap, compare, holm


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How intervals and tests are drawn."""

    resamples: int = 1000
    """Of the bootstrap."""
    rounds: int = 10_000
    """Of the randomisation test."""
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1 or self.rounds < 1:
            raise ValueError(f"resamples and rounds must be at least 1, got {self.resamples} and {self.rounds}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must be in (0, 1), got {self.level}")


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A metric with the rows of a run."""

    metric: ReportScore
    rows_NK: Tensor

    @property
    def of_reports(self) -> dict[str, list[float]]:
        """Every figure of every report by itself."""
        return {name: values.tolist() for name, values in self.metric.figures(self.rows_NK).items()}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a run."""

    name: str
    interval: Interval
    signature: str
    better: bool | None
    """Whether higher is better; None: neither."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A run and what came of it."""

    cases: tuple[Case, ...]
    counted: tuple[Counted, ...]
    figures: tuple[Figure, ...]
    absent: tuple[Absent, ...] = ()

    def figure(self, name: str) -> Figure:
        """By name.

        Raises:
            ValueError: there is none of that name.
        """
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise ValueError(f"there is no figure {name!r}; there are {[figure.name for figure in self.figures]}")

    @property
    def of_reports(self) -> dict[str, list[float]]:
        """Every figure of every report by itself."""
        return {name: values for counted in self.counted for name, values in counted.of_reports.items()}


def count(cases: Sequence[Case], metrics: Sequence[PairMetric], sections: Sections, *, progress: bool = True) -> list[Counted]:
    """Rows of every metric that reads texts."""
    predictions = [formatted(case.prediction.report, sections) for case in cases]
    references = [formatted(case.reference, sections) for case in cases]
    found = []
    with tqdm(metrics, desc="scores", unit="metric", disable=not progress) as bar:
        for metric in bar:
            bar.set_postfix_str(metric.names[0])
            found.append(Counted(metric=metric, rows_NK=metric.rows(predictions, references)))
    return found


def given(cases: Sequence[Case]) -> tuple[list[Counted], list[Absent]]:
    """What decoding knew of its reports, and whether they could be read; a value that no report has is absent."""
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
            found.append(Counted(metric=metric, rows_NK=metric.rows(own)))
        else:
            absent.append(Absent(name=name, reason="the predictions do not say"))
    return found, absent


def summarize(
    cases: Sequence[Case], counted: Sequence[Counted], absent: Sequence[Absent], resampling: Resampling, *, progress: bool = True
) -> Scored:
    """Figures with their intervals.

    Raises:
        ValueError: two metrics have a figure of the same name.
    """
    figures = []
    for one in tqdm(counted, desc="intervals", unit="metric", disable=not progress):
        intervals = bootstrap(
            one.rows_NK, one.metric.figures, resamples=resampling.resamples, level=resampling.level, seed=resampling.seed
        )
        text = signature(one.metric.variant, len(one.rows_NK))
        figures += [
            Figure(name=name, interval=interval, signature=text, better=one.metric.better(name))
            for name, interval in intervals.items()
        ]
    names = [figure.name for figure in figures]
    if len(set(names)) < len(names):
        raise ValueError(f"two metrics share a name: {sorted({name for name in names if names.count(name) > 1})}")
    return Scored(cases=tuple(cases), counted=tuple(counted), figures=tuple(figures), absent=tuple(absent))


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One figure of this run against the other's."""

    name: str
    other: float
    result: Comparison
    p_holm: float
    """``p`` corrected for the number of figures."""
    better: bool | None

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``different`` where the corrected p is under 0.05, else ``no difference shown``."""
        if not self.p_holm < 0.05:
            return "no difference shown"
        if self.better is None:
            return "different"
        return "better" if (self.result.difference > 0) == self.better else "worse"


def against(this: Scored, other: Scored, resampling: Resampling, *, progress: bool = True) -> list[Compared]:
    """Paired tests of every figure that both runs have; the cases are those of the same studies, in the same order.

    Raises:
        ValueError: they are not.
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
        Compared(
            name=name,
            other=other.figure(name).interval.value,
            result=result,
            p_holm=corrected[name],
            better=this.figure(name).better,
        )
        for name, result in results.items()
    ]


def worst(scored: Scored, by: str, count: int) -> list[int]:
    """Places of the ``count`` cases with the worst figure ``by``, the worst first; reports without the figure are left out.

    Of equals the one that shares fewer words with its reference (ROUGE-L) comes first.

    Raises:
        ValueError: no such figure, or one of which neither direction is better.
    """
    better = scored.figure(by).better
    if better is None:
        raise ValueError(f"of {by} neither high nor low is better: choose another figure to sort by")
    figures = scored.of_reports
    values = figures[by]
    second = figures.get("rouge_l_google", values)
    known = [place for place, value in enumerate(values) if not math.isnan(value)]
    return sorted(known, key=lambda place: (values[place] if better else -values[place], second[place]))[:count]
