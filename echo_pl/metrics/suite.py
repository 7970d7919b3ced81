"""Scores of one method's reports as one flat dict: words, findings, validity and efficiency.

Every score but the efficiency is a function of sums over reports (:func:`report_counts`, :func:`report_scores`). A sweep stores
the same counts by study and tests models against each other with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from echo_pl.metrics.counted import paired, ratio, signature
from echo_pl.metrics.efficiency import Efficiency
from echo_pl.metrics.findings import precision_recall_f1
from echo_pl.metrics.rouge import rouge_l
from echo_pl.metrics.surface import duplicate_word_rate, repetition_rate
from echo_pl.metrics.words import cut_words_variant
from echo_pl.reports.report import ReportJudge
from echo_pl.structs import DecodeResult, ReportText

MEANS = ("rouge_l", "duplicate_word_rate", "repetition_rate")
"""Scores that are means over reports."""
JUDGED_COUNTS = ("hits", "extra", "missed", "sentences", "valid_sentences", "valid_reports")
"""Counts that need a judge."""
CLINICAL = ("finding_f1", "valid_sentences", "valid_reports")
"""Scores that need a judge."""


def report_counts(prediction: ReportText, reference: ReportText, judge: ReportJudge | None) -> dict[str, float]:
    """Counts of one report, whose sums over reports give the scores.

    Args:
        prediction: generated report; an empty one has a ROUGE-L of 0 and one invalid sentence.
        reference: its reference.
        judge: parses reports; None leaves out :data:`JUDGED_COUNTS`.
    """
    text = report_words(prediction)
    counts = {
        "reports": 1.0,
        "rouge_l": rouge_l(text, report_words(reference)),
        "duplicate_word_rate": duplicate_word_rate(text),
        "repetition_rate": repetition_rate(text),
    }
    if judge is None:
        return counts
    parsed, wanted = judge.parse(prediction), judge.parse(reference).findings
    sentences = parsed.sentences or (("", False),)
    return counts | {
        "hits": float(len(parsed.findings & wanted)),
        "extra": float(len(parsed.findings - wanted)),
        "missed": float(len(wanted - parsed.findings)),
        "sentences": float(len(sentences)),
        "valid_sentences": float(sum(valid for _, valid in sentences)),
        "valid_reports": float(parsed.well_formed),
    }


def report_scores(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores from sums of :func:`report_counts`; scores whose counts are missing are left out.

    Finding F1 is the micro F1 over the findings of all reports: 1 if there is nothing to find and nothing is found.
    """
    reports = sums["reports"]
    scores = {name: ratio(sums[name], reports) for name in MEANS if name in sums}
    if "hits" not in sums:
        return scores
    hits, extra, missed = (sums[name] for name in ("hits", "extra", "missed"))
    return scores | {
        "finding_f1": precision_recall_f1(hits, extra, missed, torch.ones_like(hits))[2],
        "valid_sentences": ratio(sums["valid_sentences"], sums["sentences"]),
        "valid_reports": ratio(sums["valid_reports"], reports),
    }


class ReportSums(Metric):
    """Sums of :func:`report_counts` over reports and ranks; ``compute`` gives :func:`report_scores`.

    Args:
        judge: parses reports; None leaves out the clinical scores.
        sync_on_compute: sum over ranks.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, judge: ReportJudge | None, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.judge = judge
        self.names = ("reports", *MEANS, *(() if judge is None else JUDGED_COUNTS))
        self.add_state("sums", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[ReportText], references: Sequence[ReportText]) -> None:
        """Add reports; raises ValueError if there are more or fewer references than predictions."""
        for prediction, reference in paired(predictions, references):  # one by one: the order of a sum decides its last bit
            counts = report_counts(prediction, reference, self.judge)
            self.sums += torch.tensor([counts[name] for name in self.names], dtype=torch.float64).to(self.sums.device)

    def compute(self) -> dict[str, Tensor]:
        """Scores as float32."""
        return {name: score.float() for name, score in report_scores(dict(zip(self.names, self.sums, strict=True))).items()}


class ReportSuite(nn.Module):
    """Accumulates reports and their decode results; ``compute`` gives one float per score.

    Args:
        judge: parses reports into findings and validity. None, for a corpus without one, leaves out the clinical scores.
        sync_on_compute: sum over ranks. Off if every rank decodes the same studies.
    """

    def __init__(self, judge: ReportJudge | None = None, *, sync_on_compute: bool = True) -> None:
        super().__init__()
        self.judge = judge
        self.texts = ReportSums(judge, sync_on_compute=sync_on_compute)
        self.efficiency = Efficiency(sync_on_compute=sync_on_compute)

    @property
    def signatures(self) -> dict[str, str]:
        """Variant of every score, with its judge and the number of reports, for the legend of a table."""
        words = cut_words_variant()
        variants = {
            "rouge_l": f"rouge_l|measure:f1|stem:no|case:lower|words:{words}|mean:reports|v1",
            "duplicate_word_rate": f"duplicate_word_rate|within sentences|case:lower|mean:reports|v2|words:{words}",
            "repetition_rate": f"repetition_rate|order:4|case:lower|mean:reports|v1|words:{words}",
            "efficiency": Efficiency.signature,
        }
        if self.judge is not None:
            read = f"|read by:{self.judge.signature}"
            variants |= {
                "finding_f1": f"finding_f1|average:micro|positive findings only|v1{read}",
                "valid_sentences": f"valid_sentences|mean:sentences|empty report:one invalid sentence|v1{read}",
                "valid_reports": f"valid_reports|mean:reports|v1{read}",
            }
        return {name: signature(variant, int(self.efficiency.reports)) for name, variant in variants.items()}

    def update(self, results: Sequence[DecodeResult], predictions: Sequence[ReportText], references: Sequence[ReportText]) -> None:
        """Add reports, in the same order in all three arguments.

        Raises:
            ValueError: the number of decoded samples, predictions and references differs.
        """
        decoded = sum(len(result.tokens) for result in results)
        if decoded != len(predictions):
            raise ValueError(f"got {decoded} decoded samples for {len(predictions)} predictions")
        self.texts.update(predictions, references)
        self.efficiency.update(results)

    def compute(self) -> dict[str, float]:
        """Every score by its name in ``summary.json``."""
        scores = {name: float(value) for name, value in self.texts.compute().items()}
        clinical = {name: scores.pop(name) for name in CLINICAL if name in scores}
        return scores | self.efficiency.compute() | clinical

    def reset(self) -> None:
        """Forget all reports."""
        self.texts.reset()
        self.efficiency.reset()


def report_words(report: ReportText) -> str:
    """Report as one text for word scores: findings, then impression.

    The two headings are left out on both sides, because words of every report would raise the scores.
    """
    return f"{report.findings} {report.impression}".strip()
