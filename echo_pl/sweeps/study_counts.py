"""What each held-out study counts for in the scores of a sweep, so that two models can be tested against each other study by study.

The counts are kept beside a checkpoint's scores and hold no report's words. Sums of them give the scores back
(:mod:`echo_pl.metrics.counted` has the idea). Knows decoded reports and a judge; nothing of sweeps.

Shapes: N studies, K counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from echo_pl.evaluation.harness import MethodScores
from echo_pl.io.atomic import write_text_atomic
from echo_pl.metrics.counted import ratio
from echo_pl.metrics.suite import report_words
from echo_pl.metrics.text import duplicate_word_rate, paired, rouge_l
from echo_pl.reports.report import ReportJudge
from echo_pl.structs import ReportText

COUNTS = ("reports", "rouge_l", "duplicate_word_rate", "stopped", "empty", "unparsable")
JUDGED = ("hits", "extra", "missed", "sentences", "valid_sentences", "valid_reports")
"""Counts that need a judge."""


@dataclass(frozen=True, kw_only=True)
class StudyCounts:
    """Of one model, by study."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    rows_NK: Tensor
    """float64, a row for each key and a column for each name."""
    references: str = ""
    """Fingerprint of the reports that these were scored against."""
    signatures: Mapping[str, str] = field(default_factory=dict)
    """Variant of every score."""

    def figures(self, sums: Tensor) -> dict[str, Tensor]:
        """From sums of rows (..., K) to scores (...), each under the name that it has in ``summary.json``."""
        column = dict(zip(self.names, sums.unbind(-1), strict=True))
        found = {name: ratio(column[name], column["reports"]) for name in COUNTS[1:]}
        if "hits" not in column:
            return found
        hits = 2 * column["hits"]
        return found | {
            "finding_f1": ratio(hits, hits + column["extra"] + column["missed"], empty=1.0),
            "valid_sentences": ratio(column["valid_sentences"], column["sentences"]),
            "valid_reports": ratio(column["valid_reports"], column["reports"]),
        }

    def save(self, path: Path) -> None:
        """Write as JSON: keys, and a list of numbers for each name."""
        columns = {name: self.rows_NK[:, place].tolist() for place, name in enumerate(self.names)}
        about = {"references": self.references, "signatures": dict(self.signatures)}
        write_text_atomic(path, json.dumps(about | {"keys": list(self.keys), "counts": columns}) + "\n")

    @classmethod
    def load(cls, path: Path) -> StudyCounts:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: it is damaged.
            FileNotFoundError: it is not there.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            keys, columns, signatures = tuple(content["keys"]), content["counts"], dict(content["signatures"])
            references = str(content["references"])
            rows_NK = torch.tensor([columns[name] for name in columns], dtype=torch.float64).T.contiguous()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): remove it, and start the sweep again, which measures anew") from error
        if not set(COUNTS) <= set(columns) or len(keys) != len(rows_NK):
            raise ValueError(f"{path} is damaged: remove it, and start the sweep again, which measures anew")
        return cls(keys=keys, names=tuple(columns), rows_NK=rows_NK, references=references, signatures=signatures)


def study_counts(outcome: MethodScores, references: Sequence[ReportText], judge: ReportJudge | None) -> StudyCounts:
    """What each report of an evaluation counts for.

    Args:
        outcome: decoded reports and their results.
        references: of the same studies, in the same order.
        judge: parses reports; None leaves what is judged out.

    Raises:
        ValueError: there are more or fewer references than reports.
    """
    stopped = torch.cat([result.stopped_B for result in outcome.results]).tolist()
    rows = []
    for ended, lost, (report, reference) in zip(stopped, outcome.unparsable, paired(outcome.reports, references), strict=True):
        text = report_words(report)
        row = [1.0, rouge_l(text, report_words(reference)), duplicate_word_rate(text), float(ended), float(not text), float(lost)]
        if judge is not None:
            said, wanted = judge.parse(report), judge.parse(reference).findings
            sentences = said.sentences or (("", False),)
            row += [len(said.findings & wanted), len(said.findings - wanted), len(wanted - said.findings)]
            row += [len(sentences), sum(valid for _, valid in sentences), float(said.well_formed)]
        rows.append(row)
    names = COUNTS if judge is None else COUNTS + JUDGED
    texts = [[key, reference.findings, reference.impression] for key, reference in zip(outcome.keys, references, strict=True)]
    return StudyCounts(
        keys=outcome.keys,
        names=names,
        rows_NK=torch.tensor(rows, dtype=torch.float64),
        references=hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16],
        signatures=outcome.signatures,
    )
