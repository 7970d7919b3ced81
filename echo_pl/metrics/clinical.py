"""Clinical scores: findings that a report states, and validity of its sentences.

Reports are parsed by a :class:`~echo_pl.reports.report.ReportJudge`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from echo_pl.metrics.text import MeanOverReports, paired
from echo_pl.reports.report import ParsedReport


class FindingF1(Metric):
    """Micro F1 over all findings of all reports, from sets of finding labels. How fine a label is, the judge decides.

    >>> metric = FindingF1()
    >>> metric.update([frozenset({"nodule", "device"})], [frozenset({"nodule"})])
    >>> metric.compute()
    tensor(0.6667)
    """

    full_state_update = False
    higher_is_better = True
    signature = "finding_f1|average:micro|positive findings only|v1"
    hits: Tensor
    extra: Tensor
    missed: Tensor

    def __init__(self, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        for name in ("hits", "extra", "missed"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[frozenset[str]], references: Sequence[frozenset[str]]) -> None:
        """Add reports as sets of labels; predictions and references in the same order.

        Raises:
            ValueError: the two sequences differ in length.
        """
        for predicted, wanted in paired(predictions, references):
            self.hits += len(predicted & wanted)
            self.extra += len(predicted - wanted)
            self.missed += len(wanted - predicted)

    def compute(self) -> Tensor:
        """2 hits / (2 hits + extra + missed); 1 when there was nothing to find and nothing was claimed."""
        whole = 2 * self.hits + self.extra + self.missed
        return 2 * self.hits / whole if whole > 0 else torch.ones_like(whole, dtype=torch.float32)


class ValidSentences(MeanOverReports):
    """Share of all generated sentences that could have been written; a report without a sentence counts as one invalid.

    (Here the mean runs over sentences, not reports.)
    """

    higher_is_better = True
    signature = "valid_sentences|mean:sentences|empty report:one invalid sentence|v1"

    def update(self, reports: Iterable[ParsedReport]) -> None:
        """Add parsed reports."""
        for report in reports:
            for _, valid in report.sentences or (("", False),):
                self.add(float(valid))


class ValidReports(MeanOverReports):
    """Share of reports that are well-formed as a whole."""

    higher_is_better = True
    signature = "valid_reports|mean:reports|v1"

    def update(self, reports: Iterable[ParsedReport]) -> None:
        """Add parsed reports."""
        for report in reports:
            self.add(float(report.well_formed))
