"""Base classes of scores that are functions of sums of counts: each report adds a row, and the sum of rows gives the score.

ROUGE, BLEU, a micro F1 and a perplexity have this form. The score of one report, of a corpus and of a bootstrap resample are then
the same function of the sum of some rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ReportScore(Metric, ABC):
    """One or more scores of a set of reports, as a function of the sum of their counts; by default a ratio of two counts.

    Shapes: N reports, K counts. ``variant`` of a subclass holds everything that is needed to compute the scores again.

    Args:
        counts: number K of counts of a report.
    """

    full_state_update = False
    names: tuple[str, ...]
    """Names of the scores that :meth:`figures` returns."""
    direction: bool | None = None
    """True if higher is better; None: neither (a length ratio). ``higher_is_better`` of torchmetrics belongs to a class."""
    variant: str
    reports: Tensor

    sums: Tensor

    def __init__(self, counts: int = 2) -> None:
        super().__init__()
        self.add_state("reports", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(counts, dtype=torch.float64), dist_reduce_fx="sum")
        self._whole: tuple[int, int] | None = None

    def add(self, rows_NK: Tensor) -> None:
        """Add the rows of some reports."""
        self.sums += rows_NK.sum(0).to(self.sums.device)
        self.reports += len(rows_NK)

    def total(self) -> Tensor:
        """Sum (K,) of the rows of all reports; inside :meth:`compute` of the reports of all ranks."""
        return self.sums

    def figures(self, sums: Tensor) -> dict[str, Tensor]:
        """Scores (...) from sums of rows (..., K), one for each of :attr:`names`; by default part over whole, 0 if that is 0."""
        return {self.names[0]: ratio(sums[..., 0], sums[..., 1])}

    def better(self, name: str) -> bool | None:
        """:attr:`direction` of one score."""
        return self.direction

    @property
    def signature(self) -> str:
        """Variant, number of references and of reports, which two scores must share to be comparable.

        The number of reports is the rank's own before :meth:`compute`, and that of all ranks after it.
        """
        updates, reports = self._whole or (-1, 0)
        return signature(self.variant, reports if updates == self.update_count else int(self.reports))

    def compute(self) -> dict[str, Tensor]:
        """Scores of all reports of all ranks."""
        # After compute, torchmetrics restores the rank's own count. A further update makes the stored count invalid.
        self._whole = (self.update_count, int(self.reports))
        return self.figures(self.total())

    def reset(self) -> None:
        """Forget all reports."""
        super().reset()
        self._whole = None

    def plain(self) -> dict[str, float]:
        """:meth:`compute` as floats."""
        return {name: float(value) for name, value in self.compute().items()}


class PairMetric(ReportScore):
    """A score of generated reports against one reference each, given as texts of the same formatting."""

    @abstractmethod
    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Tensor:
        """Counts of each report, (N, K) float64; raises ValueError if the two sequences differ in length."""

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Add reports; predictions and references in the same order."""
        self.add(self.rows(predictions, references))


class PairRatio(PairMetric):
    """Ratio of two counts of a prediction and its reference, both summed over reports.

    Args:
        name: name of the score.
        counts: from prediction and reference to part and whole; a whole of 1 makes the score a mean over reports.
        variant: see :class:`ReportScore`.
        higher_is_better: None if neither direction is better.

    >>> same = PairRatio("same", lambda prediction, reference: (float(prediction == reference), 1.0), "same", True)
    >>> same.update(["clear lungs", ""], ["clear lungs", "clear lungs"])
    >>> same.plain(), same.signature
    ({'same': 0.5}, 'same|references:1 each, 2 in all')
    """

    def __init__(
        self, name: str, counts: Callable[[str, str], tuple[float, float]], variant: str, higher_is_better: bool | None
    ) -> None:
        super().__init__()
        self.names = (name,)
        self.counts = counts
        self.variant = variant
        self.direction = higher_is_better

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Tensor:
        """Part and whole of each report."""
        return count_rows([self.counts(*pair) for pair in paired(predictions, references)], 2)


def mean_over_reports(name: str, function: Callable[[str, str], float], variant: str, higher_is_better: bool | None) -> PairRatio:
    """Mean over reports of a function of prediction and reference."""
    return PairRatio(name, lambda prediction, reference: (function(prediction, reference), 1.0), variant, higher_is_better)


def signature(variant: str, reports: int) -> str:
    """A variant with the size of the reference set.

    >>> signature("bleu|smoothing:none", 500)
    'bleu|smoothing:none|references:1 each, 500 in all'
    """
    return f"{variant}|references:1 each, {reports} in all"


class GivenValues(ReportScore):
    """Mean of values that come with a report (its eos confidence, its end by eos), over the reports with a value.

    Args:
        name: name of the score.
        variant: see :class:`ReportScore`.
        higher_is_better: None if neither direction is better.

    >>> stopped = GivenValues("stopped", "stopped", True)
    >>> stopped.update([True, None, False])
    >>> stopped.plain()
    {'stopped': 0.5}
    """

    def __init__(self, name: str, variant: str, higher_is_better: bool | None) -> None:
        super().__init__()
        self.names = (name,)
        self.variant = variant
        self.direction = higher_is_better

    @staticmethod
    def rows(values: Sequence[float | None]) -> Tensor:
        """Value and 1 for each report; an unknown value (None) counts 0 and 0."""
        return count_rows([(0.0, 0.0) if value is None else (float(value), 1.0) for value in values], 2)

    def update(self, values: Sequence[float | None]) -> None:
        """Add the values of some reports."""
        self.add(self.rows(values))

    def figures(self, sums: Tensor) -> dict[str, Tensor]:
        """Mean over the reports with a value; nan without any."""
        return {self.names[0]: sums[..., 0] / sums[..., 1]}


def mean_rows(scores: Sequence[float]) -> Tensor:
    """Rows whose sums give a mean: (N, 2), score and 1."""
    return count_rows([(score, 1.0) for score in scores], 2)


def count_rows(rows: Sequence[Sequence[float]], counts: int) -> Tensor:
    """Counts of some reports as (N, K) float64, also for no reports."""
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, counts)


def ratio(part: Tensor, whole: Tensor, empty: float = 0.0) -> Tensor:
    """Part of whole; ``empty`` if the whole is 0.

    >>> ratio(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]), empty=1.0)
    tensor([0.5000, 1.0000])
    """
    return torch.where(whole > 0, part / whole.clamp(min=torch.finfo(whole.dtype).tiny), torch.full_like(part, empty))


def paired(predictions: Sequence[Any], references: Sequence[Any]) -> zip[tuple[Any, Any]]:
    """Pair predictions with references; raises ValueError if their numbers differ."""
    if len(predictions) != len(references):
        raise ValueError(f"got {len(predictions)} predictions for {len(references)} references")
    return zip(predictions, references, strict=True)
