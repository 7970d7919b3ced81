"""Decode held-out studies with one or more methods and score them: same prompts, same order, warmed up.

Scores and times are defined in docs/explain/method.md, "Scores". The decoder measures time; this file makes methods comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from echo_pl.evaluation.cases import formatted, parsed_prediction
from echo_pl.evaluation.rows import Row, Setting, make_row
from echo_pl.metrics.suite import ReportSuite
from echo_pl.reports.report import ReportJudge
from echo_pl.structs import Batch, DecodeResult, ReportText


class Sampler(Protocol):
    """Decoder of a batch."""

    def generate(self, batch: Batch, recorder: Any = None) -> DecodeResult:
        """Decode every prompt of ``batch``."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A decoding setting and its sampler."""

    setting: Setting
    sampler: Sampler


@dataclass(frozen=True, kw_only=True)
class MethodScores:
    """Results of one sampler on the held-out studies, in their order."""

    scores: dict[str, float]
    signatures: dict[str, str]
    """Variant of every score."""
    keys: tuple[str, ...]
    texts: tuple[str, ...]
    """Decoded responses."""
    reports: tuple[ReportText, ...]
    """Responses parsed into two fields; one without headings is an empty report."""
    unparsable: tuple[bool, ...]
    """True for responses without headings."""
    results: tuple[DecodeResult, ...]


@dataclass(frozen=True, kw_only=True)
class EvaluatedMethod:
    """A method's setting beside its scores."""

    setting: Setting
    outcome: MethodScores

    @property
    def row(self) -> Row:
        """The method's row of ``summary.json``."""
        return make_row(self.setting, self.outcome.scores)


def evaluate(
    sampler: Sampler,
    batches: Sequence[Batch],
    detokenize: Callable[[Tensor], str],
    judge: ReportJudge | None,
    *,
    warmup: int = 1,
    description: str = "evaluate",
    progress: bool = True,
) -> MethodScores:
    """Decode every batch in order and score the reports.

    Args:
        sampler: decodes a batch.
        batches: held-out studies with their references, on the sampler's device.
        detokenize: 1-D token ids to text.
        judge: parses reports; ``None`` leaves the clinical scores out.
        warmup: untimed decodes of the first batch.
        description: label of the progress bar, which ``progress`` shows.

    Raises:
        ValueError: no batches, or a batch without references.
    """
    _check_references(batches)
    run = _Run(sampler, batches, detokenize, judge)
    run.warm_up(warmup)
    with tqdm(total=_studies(batches), desc=description, unit="study", disable=None if progress else True) as bar:
        for _ in batches:
            bar.update(run.step())
    return run.finish()


def evaluate_methods(
    methods: Sequence[Method],
    batches: Mapping[int, Sequence[Batch]],
    detokenize: Callable[[Tensor], str],
    judge: ReportJudge | None,
    *,
    warmup: int = 1,
    studies_per_round: int = 16,
    description: str = "evaluate",
    progress: bool = True,
) -> list[EvaluatedMethod]:
    """:func:`evaluate` for several methods, in turns, so that a slow phase of the machine affects all of them.

    Args as in :func:`evaluate`, but ``batches`` holds the same studies for every batch size of the methods, and each method
    decodes ``studies_per_round`` studies before the next method has its turn.

    Raises:
        ValueError: a batch size is missing, or the lists hold different studies or another order.
    """
    _check_same_studies(methods, batches)
    runs = [_Run(m.sampler, batches[m.setting.batch_size], detokenize, judge) for m in methods]
    total = sum(_studies(run.batches) for run in runs)
    with tqdm(total=total, desc=description, unit="study", disable=None if progress else True) as bar:
        for run in runs:
            run.warm_up(warmup)
        while any(run.pending for run in runs):
            for method, run in zip(methods, runs, strict=True):
                bar.set_description(f"{description}: {method.setting.label}")
                done = 0
                while run.pending and done < studies_per_round:
                    studies = run.step()
                    done += studies
                    bar.update(studies)
        bar.set_description(description)
    return [EvaluatedMethod(setting=m.setting, outcome=r.finish()) for m, r in zip(methods, runs, strict=True)]


class _Run:
    """Progress of one sampler through its batches."""

    def __init__(
        self, sampler: Sampler, batches: Sequence[Batch], detokenize: Callable[[Tensor], str], judge: ReportJudge | None
    ) -> None:
        self.sampler = sampler
        self.batches = batches
        self.detokenize = detokenize
        self.judge = judge
        self.results: list[DecodeResult] = []

    @property
    def pending(self) -> bool:
        return len(self.results) < len(self.batches)

    @torch.no_grad()
    def warm_up(self, times: int) -> None:
        for _ in range(times):
            self.sampler.generate(self.batches[0])

    @torch.no_grad()
    def step(self) -> int:
        """Decode the next batch; returns its number of studies."""
        batch = self.batches[len(self.results)]
        self.results.append(self.sampler.generate(batch))
        return len(batch)

    def finish(self) -> MethodScores:
        texts = [self.detokenize(tokens) for result in self.results for tokens in result.tokens]
        parsed = [parsed_prediction(text) for text in texts]
        reports = [one.report for one in parsed]
        # Every rank decodes the same studies (sharded models need all of them), so nothing is summed over ranks.
        suite = ReportSuite(self.judge, sync_on_compute=False)
        suite.update(self.results, reports, [reference for batch in self.batches for reference in batch.references])
        return MethodScores(
            scores=suite.compute()
            | {
                "empty": sum(not formatted(report) for report in reports) / len(reports),
                "unparsable": sum(not one.parsed for one in parsed) / len(parsed),
            },
            signatures=suite.signatures,
            keys=tuple(key for batch in self.batches for key in batch.keys),
            texts=tuple(texts),
            reports=tuple(reports),
            unparsable=tuple(not one.parsed for one in parsed),
            results=tuple(self.results),
        )


def _studies(batches: Sequence[Batch]) -> int:
    return sum(len(batch) for batch in batches)


def _check_references(batches: Sequence[Batch]) -> None:
    if not batches:
        raise ValueError("there is nothing to evaluate: got no batches")
    for batch in batches:
        if len(batch.references) != len(batch):
            raise ValueError(f"batch of {batch.keys[0]!r}: {len(batch)} studies but {len(batch.references)} references")


def _check_same_studies(methods: Sequence[Method], batches: Mapping[int, Sequence[Batch]]) -> None:
    if not methods:
        raise ValueError("there is nothing to evaluate: got no methods")
    orders = {}
    for size in {method.setting.batch_size for method in methods}:
        if size not in batches:
            raise ValueError(f"no batches of size {size}; sizes given: {sorted(batches)}")
        _check_references(batches[size])
        orders[size] = [key for batch in batches[size] for key in batch.keys]
    first, *others = orders
    for size in others:
        if orders[size] != orders[first]:
            raise ValueError(f"batch sizes {first} and {size} hold different studies, or another order of them")
