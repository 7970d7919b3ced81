"""Cells of a sweep against each other: what a student loses against its own AR model, and whether one objective beats another.

The first is a mean over training seeds. The second is a paired randomisation test over all reports of all seeds: of each seed the
two students decode the same studies, and have the same teacher unless data or teacher is what they differ in. Knows cells and
counts, not where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from echo_pl.metrics.statistics import Comparison, compare, holm
from echo_pl.sweeps.pareto import Key, Mean, Measured, label, mean
from echo_pl.sweeps.study_counts import StudyCounts

TESTED = ("finding_f1", "rouge_l", "valid_sentences", "valid_reports")
"""Scores that are tested."""
NOT_DISTILLED = ("ar", "teacher")


@dataclass(frozen=True, kw_only=True)
class Drop:
    """How much lower than its AR model a group scores, in shares of the AR model's score (.02: 2 % lower)."""

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
    """Over the reports of all seeds."""
    by_seed: tuple[float, ...]
    """The difference in each."""
    corrected: float = float("nan")
    """p, corrected for the number of tests (Holm)."""


def drops(cells: Iterable[Measured], names: Sequence[str], level: float) -> list[Drop]:
    """Of every group whose AR models are known, by group, then by score."""
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
    names: Sequence[str] = TESTED,
    rounds: int = 10_000,
) -> tuple[list[Contrast], list[str]]:
    """Every distilled group against the groups of the same block size whose objective is one of ``against``.

    Args:
        cells: measured ones.
        counts: by name of the cell; a seed that lacks one side's is left out.
        against: objectives; of the same variant where there is one, otherwise without a variant.
        names: of the scores that are tested.
        rounds: random exchanges of each test; the smallest p is 1 / (rounds + 1).

    Returns:
        The tests, and a line for each pair that could not be tested: other studies, other references for them, or another variant
        of a score.
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
            if not all(_same_studies(*pair) for pair in pairs):
                untested.append(f"{which}: other studies, or other references of them")
                continue
            other = [name for name in names if any(_other_variant(name, *pair) for pair in pairs)]
            untested += [f"{which} by {name}: the signatures differ; start the sweep again with one environment" for name in other]
            found += _tested(first, second, tuple(seeds), pairs, [name for name in names if name not in other], rounds)
    corrected = holm({str(place): one.comparison.p for place, one in enumerate(found)})
    return [replace(one, corrected=corrected[str(place)]) for place, one in enumerate(found)], untested


def _same_studies(one: StudyCounts, other: StudyCounts) -> bool:
    return (one.keys, one.names, one.references) == (other.keys, other.names, other.references)


def _other_variant(name: str, one: StudyCounts, other: StudyCounts) -> bool:
    return one.signatures.get(name) != other.signatures.get(name)


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
