"""Measurement of the rule engine: completeness, regions, unassigned clauses, labels, speed.

One report a line, with ``id``, ``findings`` and ``impression``; ``mesh_major`` and ``mesh_auto``,
if present, are the gold labels.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from echo_pl.io.atomic import write_text_atomic
from echo_pl.reports.cleaning import clean
from echo_pl.reports.completeness import CompletenessCheck, Problem
from echo_pl.reports.labeller import TAGGED_NAMES, Labeller, tagged
from echo_pl.reports.plain_comparison import plain_violations
from echo_pl.reports.regions import OTHER
from echo_pl.reports.report import NormalizedReport, RawReport
from echo_pl.reports.rules import RuleNormalizer

Part = Literal["all", "held_out", "rest"]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One report, normalized and checked."""

    key: str
    raw: RawReport
    normalized: NormalizedReport | None
    """None if the normalizer raised an error."""
    problems: tuple[Problem, ...] = ()
    reason: str = ""
    """Message of that error."""
    plain: tuple[tuple[str, str], ...] = ()
    """Differences that the plain comparison finds."""


def held_out(key: str) -> bool:
    """Return True if a report is in the third, by hash, on which no rule was written."""
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 3 == 0


def read_rows(path: Path, part: Part) -> Iterator[dict[str, Any]]:
    """Yield the reports of a JSONL file; raise ValueError for a line without id or text."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            row = json.loads(line)
            if not isinstance(row, dict) or "id" not in row or not {"findings", "impression"} & row.keys():
                raise ValueError(f"{path}, line {number}: an object with id, findings and impression is needed")
            if part == "all" or held_out(str(row["id"])) == (part == "held_out"):
                yield row


def raw_report(row: dict[str, Any]) -> RawReport:
    """Return the report of a row."""
    return RawReport(findings=str(row.get("findings") or ""), impression=str(row.get("impression") or ""))


def check(rows: Sequence[dict[str, Any]]) -> tuple[list[Checked], float]:
    """Normalize and check every report; return them and the CPU seconds of the normalizer."""
    normalizer, completeness = RuleNormalizer(), CompletenessCheck(verbatim=True)
    raws = [raw_report(row) for row in rows]
    done: list[tuple[NormalizedReport | None, str]] = []
    began = time.process_time()
    for raw in raws:
        try:
            done.append((normalizer.normalize(raw), ""))
        except ValueError as error:
            done.append((None, str(error)))
    seconds = time.process_time() - began
    checked = []
    for row, raw, (normalized, reason) in zip(rows, raws, done, strict=True):
        problems = tuple(completeness.problems(raw, normalized)) if normalized else ()
        plain = tuple(plain_violations(raw, normalized)) if normalized and normalized.language == "en" else ()
        checked.append(Checked(key=str(row["id"]), raw=raw, normalized=normalized, problems=problems, reason=reason, plain=plain))
    return checked, seconds


def figures(checked: Sequence[Checked], seconds: float) -> dict[str, Any]:
    """Return the measurements of the normalizer."""
    reports = [(one, one.normalized) for one in checked if one.normalized is not None]
    statements = [statement for _, report in reports for statement in report.statements if not statement.imputed]
    problems = Counter(name for one, _ in reports for name in {problem.name for problem in one.problems})
    dropped: Counter[str] = Counter()
    for _, report in reports:
        dropped.update(report.dropped)
    unassigned = sum(one.section == OTHER for one in statements)
    whole = sum(all(problem.name != "region_missing" for problem in one.problems) for one, _ in reports)
    complete = sum(not one.problems for one, _ in reports)
    count = max(len(reports), 1)
    return {
        "engine": RuleNormalizer.name,
        "reports": len(checked),
        "refused": dict(Counter(one.reason for one in checked if one.normalized is None)),
        "normalized": len(reports),
        "complete": complete,
        "complete_share": complete / count,
        "problems": dict(problems.most_common()),
        "plain_comparison": {
            "reports": sum(bool(one.plain) for one, _ in reports),
            "violations": dict(Counter(name for one, _ in reports for name, _ in one.plain).most_common()),
        },
        "all_regions_share": whole / count,
        "clauses": len(statements),
        "unassigned_clauses": unassigned,
        "unassigned_share": unassigned / max(len(statements), 1),
        "imputed_regions_per_report": sum(len(report.imputed) for _, report in reports) / count,
        "dropped": dict(dropped.most_common()),
        "reports_per_cpu_second": len(checked) / max(seconds, 1e-9),
    }


def rates(hits: int, false: int, missed: int) -> dict[str, float]:
    """Return precision, recall and their harmonic mean; 0 without hits."""
    return {
        "precision": hits / max(hits + false, 1),
        "recall": hits / max(hits + missed, 1),
        "f1": 2 * hits / max(2 * hits + false + missed, 1),
    }


def label_figures(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Compare positive and uncertain labels of both sections with MeSH tags."""
    labeller = Labeller()
    hits, false, missed = Counter[str](), Counter[str](), Counter[str]()
    judged = 0
    for row in rows:
        gold = tagged([*row.get("mesh_major", ()), *row.get("mesh_auto", ())])
        raw = raw_report(row)
        text = clean(f"{raw.findings}\n\n{raw.impression}").text
        if gold is None or not text:
            continue
        judged += 1
        labels = labeller.label(text)
        found = {name for name in TAGGED_NAMES if labels[name].present}
        hits.update(found & gold)
        false.update(found - gold)
        missed.update(gold - found)
    return {
        "studies": judged,
        **{f"micro_{name}": value for name, value in rates(hits.total(), false.total(), missed.total()).items()},
        "names": {
            name: {"hits": hits[name], "false": false[name], "missed": missed[name], **rates(hits[name], false[name], missed[name])}
            for name in TAGGED_NAMES
        },
    }


def review(checked: Iterable[Checked]) -> str:
    """Return the reports that failed, one a line, with reasons, original and normalized text."""
    lines = [
        json.dumps(
            {
                "id": one.key,
                "refused": one.reason,
                "problems": [asdict(problem) for problem in one.problems],
                "plain": one.plain,
                "findings": one.raw.findings,
                "impression": one.raw.impression,
                "normalized": asdict(one.normalized.text) if one.normalized else None,
            },
            ensure_ascii=False,
        )
        for one in checked
        if one.problems or one.plain or one.normalized is None
    ]
    return "".join(line + "\n" for line in lines)


def check_file(reports: Path, part: Part, out: Path | None, review_file: Path | None) -> dict[str, Any]:
    """Check the reports of a JSONL file and write the figures.

    Args:
        reports: JSONL of raw reports.
        part: all reports, the third that is held out by hash, or the rest.
        out: JSON file for the figures; None: none.
        review_file: file for the reports that failed, with their text (patient data); None: none.
    """
    rows = list(read_rows(reports, part))
    checked, seconds = check(rows)
    result = {"part": part, **figures(checked, seconds)}
    if any("mesh_major" in row for row in rows):
        result["labeller"] = label_figures(rows)
    if out:
        write_text_atomic(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if review_file:
        write_text_atomic(review_file, review(checked))
    return result
