"""Scores as counts: what one report adds to a sum, and what the sum of many reports comes to.

ROUGE, BLEU, a micro F1 and a perplexity all have this form. One report's own figure, a corpus's figure and each resample of a
bootstrap are then one function of the sum of some rows. Knows neither words nor findings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class ReportScore(Metric, ABC):
    """One or more figures of a set of reports, as a function of the sum of what each report counts for.

    Shapes: N reports, K counts. Subclasses say in ``variant`` what would have to be known to compute the figures again.
    """

    full_state_update = False
    names: tuple[str, ...]
    """The figures, as :meth:`figures` returns them."""
    direction: bool | None = None
    """Whether higher is better; None: neither (a length ratio). torchmetrics' own ``higher_is_better`` is one of a class."""
    variant: str
    reports: Tensor

    def __init__(self, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.add_state("reports", torch.tensor(0), dist_reduce_fx="sum")
        self._whole: tuple[int, int] | None = None

    @abstractmethod
    def total(self) -> Tensor:
        """The sum (K,) of the rows of all reports seen; of all ranks' reports while :meth:`compute` runs."""

    @abstractmethod
    def figures(self, sums: Tensor) -> dict[str, Tensor]:
        """From sums of rows (..., K) to figures (...), under each of :attr:`names`."""

    def better(self, name: str) -> bool | None:
        """:attr:`direction` of one figure."""
        return self.direction

    @property
    def signature(self) -> str:
        """Variant, number of references and of reports: what two figures must share to be compared.

        Of several ranks each says, before :meth:`compute`, how many it has seen itself, and from then on how many all have.
        """
        updates, reports = self._whole or (-1, 0)
        return signature(self.variant, reports if updates == self.update_count else int(self.reports))

    def compute(self) -> dict[str, Tensor]:
        """The figures of all reports seen, by whichever rank."""
        # Behind compute, torchmetrics gives a rank its own count back. Further updates make what is kept here out of date.
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
        """What each report counts for: (N, K) float64. Pure: nothing is added.

        Raises:
            ValueError: the two sequences differ in length.
        """


def signature(variant: str, reports: int) -> str:
    """A variant with the size of the reference set.

    >>> signature("bleu|smoothing:none", 500)
    'bleu|smoothing:none|references:1 each, 500 in all'
    """
    return f"{variant}|references:1 each, {reports} in all"


class CountedReports(PairMetric):
    """A score whose rows do not depend on the other reports, so that ranks need share nothing but sums.

    Args:
        counts: how many numbers K a report counts for.
        sync_on_compute: sum over ranks.
    """

    sums: Tensor

    def __init__(self, counts: int, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.add_state("sums", torch.zeros(counts, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Add reports; predictions and references in the same order.

        Raises:
            ValueError: the two sequences differ in length.
        """
        rows_NK = self.rows(predictions, references)
        self.sums += rows_NK.sum(0).to(self.sums.device)
        self.reports += len(rows_NK)

    def total(self) -> Tensor:
        """See :meth:`ReportScore.total`."""
        return self.sums


class MeanOfPairs(CountedReports):
    """Mean over reports of a pure function of prediction and reference.

    Args:
        name: of the figure.
        function: from prediction and reference to a score; gives an empty prediction its score too.
        variant: see :class:`ReportScore`.
        higher_is_better: which of two values is the better one.
        sync_on_compute: sum over ranks.

    >>> same = MeanOfPairs("same", lambda prediction, reference: float(prediction == reference), "same", True)
    >>> same.update(["clear lungs", ""], ["clear lungs", "clear lungs"])
    >>> same.plain(), same.signature
    ({'same': 0.5}, 'same|references:1 each, 2 in all')
    """

    def __init__(
        self,
        name: str,
        function: Callable[[str, str], float],
        variant: str,
        higher_is_better: bool | None,
        *,
        sync_on_compute: bool = True,
    ) -> None:
        super().__init__(2, sync_on_compute=sync_on_compute)
        self.names = (name,)
        self.function = function
        self.variant = variant
        self.direction = higher_is_better

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> Tensor:
        """Score and 1, a row a report."""
        return mean_rows([self.function(*pair) for pair in paired(predictions, references)])

    def figures(self, sums: Tensor) -> dict[str, Tensor]:
        """The mean; 0 without reports."""
        return {self.names[0]: ratio(sums[..., 0], sums[..., 1])}


class GivenValues(ReportScore):
    """Mean of values that come with a report (its eos confidence, whether it stopped), where they are known.

    Args:
        name: of the figure.
        variant: see :class:`ReportScore`.
        higher_is_better: which of two values is the better one.
        sync_on_compute: sum over ranks.

    >>> stopped = GivenValues("stopped", "stopped", True)
    >>> stopped.update([True, None, False])
    >>> stopped.plain()
    {'stopped': 0.5}
    """

    sums: Tensor

    def __init__(self, name: str, variant: str, higher_is_better: bool | None, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.names = (name,)
        self.variant = variant
        self.direction = higher_is_better
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    @staticmethod
    def rows(values: Sequence[float | None]) -> Tensor:
        """Value and 1, a row a report; an unknown value (None) counts for nothing."""
        rows = [(0.0, 0.0) if value is None else (float(value), 1.0) for value in values]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)

    def update(self, values: Sequence[float | None]) -> None:
        """Add the values of some reports."""
        self.sums += self.rows(values).sum(0).to(self.sums.device)
        self.reports += len(values)

    def total(self) -> Tensor:
        """See :meth:`ReportScore.total`."""
        return self.sums

    def figures(self, sums: Tensor) -> dict[str, Tensor]:
        """The mean over the reports whose value is known; nan without any."""
        return {self.names[0]: sums[..., 0] / sums[..., 1]}


def mean_rows(scores: Sequence[float]) -> Tensor:
    """Rows whose sums give a mean: (N, 2), score and 1."""
    return torch.tensor([(score, 1.0) for score in scores], dtype=torch.float64).reshape(-1, 2)


def ratio(part: Tensor, whole: Tensor, empty: float = 0.0) -> Tensor:
    """Part of whole; ``empty`` where there is no whole.

    >>> ratio(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]), empty=1.0)
    tensor([0.5000, 1.0000])
    """
    return torch.where(whole > 0, part / whole.clamp(min=torch.finfo(whole.dtype).tiny), torch.full_like(part, empty))


def paired(predictions: Sequence[Any], references: Sequence[Any]) -> zip[tuple[Any, Any]]:
    """Pair predictions with references.

    Raises:
        ValueError: they differ in number, so that a report would be left out.
    """
    if len(predictions) != len(references):
        raise ValueError(f"got {len(predictions)} predictions for {len(references)} references")
    return zip(predictions, references, strict=True)
