"""Cells of a sweep against each other: the loss of a student against its own AR model, and tests of one objective against another.

The first is a mean over training seeds. The second is a paired randomisation test over all reports of all seeds, on counts by study
that are stored beside a checkpoint's scores. Both students of a seed decode the same studies, and have the same teacher unless data
or teacher is the difference. The counts hold no words of reports. Shapes: N studies, K counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from echo_pl.evaluation.harness import MethodScores
from echo_pl.io.atomic import write_text_atomic
from echo_pl.metrics.counted import paired, ratio
from echo_pl.metrics.statistics import Comparison, compare, holm
from echo_pl.metrics.suite import JUDGED_COUNTS, report_counts, report_scores, report_words
from echo_pl.reports.report import ReportJudge
from echo_pl.structs import ReportText
from echo_pl.sweeps.pareto import Key, Mean, Measured, label, mean

COUNTS = ("reports", "rouge_l", "duplicate_word_rate", "stopped", "empty", "unparsable")
"""Counts without a judge."""
TESTED = ("finding_f1", "rouge_l", "valid_sentences", "valid_reports")
"""Tested scores."""
NOT_DISTILLED = ("ar", "teacher")


@dataclass(frozen=True, kw_only=True)
class StudyCounts:
    """Counts of one model, by study."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    rows_NK: Tensor
    """float64, one row per key and one column per name."""
    references: str = ""
    """Fingerprint of the reference reports."""
    signatures: Mapping[str, str] = field(default_factory=dict)
    """Variant of every score."""

    def figures(self, sums: Tensor) -> dict[str, Tensor]:
        """Scores (...) from sums of rows (..., K), by their names in ``summary.json``."""
        column = dict(zip(self.names, sums.unbind(-1), strict=True))
        shares = {name: ratio(column[name], column["reports"]) for name in ("stopped", "empty", "unparsable")}
        return report_scores(column) | shares

    def save(self, path: Path) -> None:
        """Write as JSON: keys, and a list of numbers per name."""
        columns = {name: self.rows_NK[:, place].tolist() for place, name in enumerate(self.names)}
        about = {"references": self.references, "signatures": dict(self.signatures)}
        write_text_atomic(path, json.dumps(about | {"keys": list(self.keys), "counts": columns}) + "\n")

    @classmethod
    def load(cls, path: Path) -> StudyCounts:
        """Read the file of :meth:`save`; raises ValueError if it is damaged."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            keys, columns, signatures = tuple(content["keys"]), content["counts"], dict(content["signatures"])
            references = str(content["references"])
            rows_NK = torch.tensor([columns[name] for name in columns], dtype=torch.float64).T.contiguous()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): remove it, and start the sweep again to measure it") from error
        if not set(COUNTS) <= set(columns) or len(keys) != len(rows_NK):
            raise ValueError(f"{path} is damaged: remove it, and start the sweep again to measure it")
        return cls(keys=keys, names=tuple(columns), rows_NK=rows_NK, references=references, signatures=signatures)


def study_counts(outcome: MethodScores, references: Sequence[ReportText], judge: ReportJudge | None) -> StudyCounts:
    """Counts of each report of an evaluation; without a judge those that need it are left out.

    Raises:
        ValueError: the numbers of references and reports differ.
    """
    names = COUNTS if judge is None else COUNTS + JUDGED_COUNTS
    stopped = torch.cat([result.stopped_B for result in outcome.results]).tolist()
    rows = []
    for ended, unparsable, (report, reference) in zip(
        stopped, outcome.unparsable, paired(outcome.reports, references), strict=True
    ):
        flags = {"stopped": float(ended), "empty": float(not report_words(report)), "unparsable": float(unparsable)}
        counts = report_counts(report, reference, judge) | flags
        rows.append([counts[name] for name in names])
    texts = [[key, reference.findings, reference.impression] for key, reference in zip(outcome.keys, references, strict=True)]
    return StudyCounts(
        keys=outcome.keys,
        names=names,
        rows_NK=torch.tensor(rows, dtype=torch.float64),
        references=hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16],
        signatures=outcome.signatures,
    )


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Loss of a group against its AR models, as a share of their score (.02: 2 % lower)."""

    key: Key
    name: str
    mean: Mean


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One score of two objectives with the same block size."""

    first: Key
    second: Key
    name: str
    seeds: tuple[int, ...]
    comparison: Comparison
    """Comparison over the reports of all seeds."""
    by_seed: tuple[float, ...]
    """Difference in each seed."""
    corrected: float = float("nan")
    """p, corrected for the number of tests (Holm)."""


def drops(cells: Iterable[Measured], names: Sequence[str], level: float) -> list[Drop]:
    """Drops of every group with known AR models, by group, then by score."""
    there = {cell.name: cell for cell in cells}
    of: dict[tuple[Key, str], list[float]] = {}
    for cell in there.values():
        base = there.get(cell.base or "")
        if base is None or base is cell:
            continue
        for name in names:
            if cell.scores.get(name) is not None and base.scores.get(name, 0.0) > 0.0:
                of.setdefault((cell.key, name), []).append(1.0 - cell.scores[name] / base.scores[name])
    ordered = sorted(of, key=lambda place: (place[0][2], place[0], names.index(place[1])))
    return [Drop(key=key, name=name, mean=mean(of[key, name], level)) for key, name in ordered]


def contrasts(
    cells: Iterable[Measured],
    counts: Mapping[str, StudyCounts],
    against: Sequence[str],
    *,
    rounds: int,
) -> tuple[list[Contrast], list[str]]:
    """Test every distilled group against the groups of the same block size with an objective of ``against``.

    Args:
        cells: measured cells.
        counts: counts by name of the cell; a seed without those of both sides is left out.
        against: objectives; with the same variant if there is one, otherwise without a variant.
        rounds: random exchanges of each test; the smallest p is 1 / (rounds + 1).

    Returns:
        The tests, and a line for each untested pair: other studies, other references, or another variant of a score.
    """
    of: dict[Key, dict[int, str]] = {}
    for cell in cells:
        if cell.name in counts and cell.key[0] not in NOT_DISTILLED:
            of.setdefault(cell.key, {})[cell.seed] = cell.name
    found: list[Contrast] = []
    untested: list[str] = []
    for first in sorted(of, key=lambda key: (key[2], key)):
        for objective in against:
            second = next((key for key in ((objective, first[1], first[2]), (objective, "", first[2])) if key in of), None)
            if second is None:
                untested.append(f"{label(first)} was not tested against {objective}: no cell of this block size is of it")
                continue
            seeds = sorted(set(of[first]) & set(of[second]))
            turned = any((one.first, one.second) == (second, first) for one in found)
            if second == first or not seeds or turned:
                continue
            pairs = [(counts[of[first][seed]], counts[of[second][seed]]) for seed in seeds]
            which = f"{label(first)} was not tested against {label(second)}"
            if any((one.keys, one.names, one.references) != (two.keys, two.names, two.references) for one, two in pairs):
                untested.append(f"{which}: other studies, or other references of them")
                continue
            other = [name for name in TESTED if any(one.signatures.get(name) != two.signatures.get(name) for one, two in pairs)]
            untested += [f"{which} by {name}: the signatures differ; start the sweep again with one environment" for name in other]
            found += _tested(first, second, tuple(seeds), pairs, [name for name in TESTED if name not in other], rounds)
    corrected = holm({str(place): one.comparison.p for place, one in enumerate(found)})
    return [replace(one, corrected=corrected[str(place)]) for place, one in enumerate(found)], untested


def _tested(
    first: Key,
    second: Key,
    seeds: tuple[int, ...],
    pairs: Sequence[tuple[StudyCounts, StudyCounts]],
    names: Sequence[str],
    rounds: int,
) -> list[Contrast]:
    figures = pairs[0][0].figures
    pooled = compare(
        torch.cat([one.rows_NK for one, _ in pairs]), torch.cat([other.rows_NK for _, other in pairs]), figures, rounds=rounds
    )
    alone = [(figures(one.rows_NK.sum(0)), figures(other.rows_NK.sum(0))) for one, other in pairs]
    return [
        Contrast(
            first=first,
            second=second,
            name=name,
            seeds=seeds,
            comparison=pooled[name],
            by_seed=tuple(float(one[name] - other[name]) for one, other in alone),
        )
        for name in names
        if name in pooled
    ]
