"""All report scores of one method as one flat dict: text, clinical and efficiency together.

Knows nothing of who decoded the reports or where the scores go.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchmetrics import Metric

from echo_pl.metrics.clinical import FindingF1, ValidReports, ValidSentences
from echo_pl.metrics.counted import signature
from echo_pl.metrics.efficiency import Efficiency
from echo_pl.metrics.text import DuplicateWordRate, RepetitionRate, RougeL, paired
from echo_pl.reports.report import ReportJudge
from echo_pl.structs import DecodeResult, ReportText

CLINICAL = ("finding_f1", "valid_sentences", "valid_reports")
"""Scores that need a judge."""


class ReportSuite(nn.Module):
    """Accumulates reports and their decode results; ``compute`` gives one float per score name.

    Args:
        judge: parses reports into findings and validity. ``None`` for a corpus without one: the clinical scores
            are then absent from the result.
        sync_on_compute: sum over ranks. Off where every rank decodes the same studies.
    """

    def __init__(self, judge: ReportJudge | None = None, *, sync_on_compute: bool = True) -> None:
        super().__init__()
        self.judge = judge
        self.rouge_l = RougeL(sync_on_compute=sync_on_compute)
        self.duplicate_word_rate = DuplicateWordRate(sync_on_compute=sync_on_compute)
        self.repetition_rate = RepetitionRate(sync_on_compute=sync_on_compute)
        self.efficiency = Efficiency(sync_on_compute=sync_on_compute)
        self.finding_f1 = FindingF1(sync_on_compute=sync_on_compute)
        self.valid_sentences = ValidSentences(sync_on_compute=sync_on_compute)
        self.valid_reports = ValidReports(sync_on_compute=sync_on_compute)

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics that ``compute`` asks, by name."""
        absent = CLINICAL if self.judge is None else ()
        return {name: child for name, child in self.named_children() if isinstance(child, Metric) and name not in absent}

    @property
    def signatures(self) -> dict[str, str]:
        """The variant of every score, for a report's small print: what was scored, by whom it was read, and how many."""
        read = "" if self.judge is None else f"|read by:{self.judge.signature}"
        return {
            name: signature(f"{metric.signature}{read if name in CLINICAL else ''}", int(self.efficiency.reports))
            for name, metric in self.metrics.items()
        }

    def update(self, results: Sequence[DecodeResult], predictions: Sequence[ReportText], references: Sequence[ReportText]) -> None:
        """Add reports, in the same order in all three arguments.

        Raises:
            ValueError: the number of decoded samples, predictions and references differs.
        """
        pairs = list(paired(predictions, references))
        decoded = sum(len(result.tokens) for result in results)
        if decoded != len(pairs):
            raise ValueError(f"got {decoded} decoded samples for {len(pairs)} predictions")
        texts = [report_words(prediction) for prediction, _ in pairs]
        self.rouge_l.update(texts, [report_words(reference) for _, reference in pairs])
        self.duplicate_word_rate.update(texts)
        self.repetition_rate.update(texts)
        self.efficiency.update(results)
        if self.judge is not None:
            self._update_clinical(self.judge, pairs)

    def _update_clinical(self, judge: ReportJudge, pairs: Sequence[tuple[ReportText, ReportText]]) -> None:
        parsed = [judge.parse(prediction) for prediction, _ in pairs]
        predicted = [report.findings for report in parsed]
        wanted = [judge.parse(reference).findings for _, reference in pairs]
        self.finding_f1.update(predicted, wanted)
        self.valid_sentences.update(parsed)
        self.valid_reports.update(parsed)

    def compute(self) -> dict[str, float]:
        """Every score under its name in ``summary.json``."""
        scores = {
            "rouge_l": float(self.rouge_l.compute()),
            "duplicate_word_rate": float(self.duplicate_word_rate.compute()),
            "repetition_rate": float(self.repetition_rate.compute()),
            **self.efficiency.compute(),
        }
        if self.judge is None:
            return scores
        return scores | {
            "finding_f1": float(self.finding_f1.compute()),
            "valid_sentences": float(self.valid_sentences.compute()),
            "valid_reports": float(self.valid_reports.compute()),
        }

    def reset(self) -> None:
        """Forget everything seen."""
        for metric in self.metrics.values():
            metric.reset()


def report_words(report: ReportText) -> str:
    """The report as one text for word scores: findings, then impression, without the two labels.

    The labels are left out on both sides, so that a word every report has does not lift the score.
    """
    return f"{report.findings} {report.impression}".strip()
