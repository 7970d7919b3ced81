"""Files of an evaluation: a record of every report, and the aggregate with intervals and tests, both JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from echo_pl.evaluation.cases import Case
from echo_pl.evaluation.predictions import RECORDS, case_record
from echo_pl.evaluation.scoring import ScoreComparison, ScoredRun
from echo_pl.io.atomic import write_json, write_text_atomic

AGGREGATE = "aggregate.json"
PAGES = ("report.md", "index.html")
"""Pages of an evaluation."""
SCHEMA_VERSION = 1


def write_records(folder: Path, cases: Sequence[Case], scores: Mapping[str, Sequence[float]] | None = None) -> Path:
    """Write ``reports.jsonl``: one line per report with its own scores, readable as predictions and as references.

    The aggregate and pages of an older evaluation are removed first, because they belong to other reports.

    ``scores`` are those of every report alone; None: not scored yet.
    """
    lines = []
    for place, case in enumerate(cases):
        record = case_record(case)
        if scores is not None:
            record["scores"] = {name: without_nan(values[place]) for name, values in scores.items()}
        lines.append(json.dumps(record, ensure_ascii=False))
    for name in (AGGREGATE, *PAGES):
        (folder / name).unlink(missing_ok=True)
    return write_text_atomic(folder / RECORDS, "".join(f"{line}\n" for line in lines))


def write_aggregate(folder: Path, scored: ScoredRun, compared: Sequence[ScoreComparison], about: Mapping[str, Any]) -> Path:
    """Write ``aggregate.json``, without words of reports; nan becomes null.

    ``about`` holds settings, inputs and versions.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "reports": len(scored.cases),
        **about,
        "figures": {
            one.name: {**asdict(one.interval), "higher_is_better": one.better, "signature": one.signature} for one in scored.scores
        },
        "absent": {one.name: one.reason for one in scored.absent},
        "against": {
            one.name: {"other": one.other, **asdict(one.result), "p_holm": one.p_holm, "verdict": one.verdict} for one in compared
        },
    }
    return write_json(folder / AGGREGATE, without_nan(content))


def read_aggregate(folder: Path | str) -> dict[str, Any]:
    """Read the file of :func:`write_aggregate`.

    Raises:
        FileNotFoundError: the folder holds no finished evaluation.
        ValueError: the file has another schema version.
    """
    file = Path(folder) / AGGREGATE
    if not file.is_file():
        raise FileNotFoundError(f"no {file}: {folder} is not the folder of a finished evaluation")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if content.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{file} has schema version {content.get('schema_version')!r}, this program reads {SCHEMA_VERSION}")
    return content


def without_nan(value: Any) -> Any:
    """Replace numbers that JSON cannot hold by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list | tuple) else value
