"""The cells of a sweep, read from MLflow and compared.

Means over seeds, losses against the AR model, objectives tested against each other, the Pareto front of quality against speed, and
what is missing. See docs/how-to/sweeps.md.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from echo_pl.evaluation.score_files import without_nan
from echo_pl.io.atomic import write_json, write_text_atomic
from echo_pl.io.command_line import command_line
from echo_pl.runs.run import silence_noisy_loggers
from echo_pl.sweeps.cells import AR
from echo_pl.sweeps.contrasts import StudyCounts, contrasts, drops
from echo_pl.sweeps.pareto import Group, Key, Measured, group
from echo_pl.sweeps.pareto_report import SweepComparison
from echo_pl.sweeps.plan import STUDIES
from echo_pl.sweeps.record import BASE, CELL, ERROR, SWEEP, children
from echo_pl.tracking.upload import bound_retries, first_line

QUALITIES = ("finding_f1", "rouge_l")
SMALLER_IS_BETTER = ("duplicate_word_rate", "repetition_rate", "looped", "nfe", "forwards_per_block", "seconds_per_report")
BASELINES = ("dcd", "ce")
COLUMNS = (
    "finding_f1",
    "rouge_l",
    "valid_sentences",
    "valid_reports",
    "stopped",
    "duplicate_word_rate",
    "forwards_per_block",
    "nfe",
    "tps",
    "tps_together",
)


def find_parent(client: MlflowClient, experiment: str, sweep: str | None, parent: str | None) -> Run:
    """Parent run of a sweep: by id, by name, or the only one; raises ValueError without exactly one."""
    if parent is not None:
        if sweep is not None:
            raise ValueError("--sweep and --parent both name a sweep: give one of them")
        found = client.get_run(parent)
        if SWEEP not in found.data.tags:
            raise ValueError(f"run {parent} is not the parent run of a sweep: it has no tag {SWEEP}")
        return found
    place = client.get_experiment_by_name(experiment)
    if place is None:
        names = ", ".join(sorted(one.name for one in client.search_experiments()))
        raise ValueError(f"there is no experiment {experiment!r} at {client.tracking_uri}; there are: {names}")
    there = client.search_runs([place.experiment_id], f"tags.`{SWEEP}` LIKE '%'")
    sweeps = [run for run in there if sweep in (None, run.data.tags[SWEEP])]
    if len(sweeps) != 1:
        names = ", ".join(f"{run.data.tags[SWEEP]} ({run.info.run_id})" for run in sweeps or there) or "none"
        wanted = "one sweep" if sweep is None else f"one sweep named {sweep!r}"
        raise ValueError(
            f"experiment {experiment!r} does not have {wanted}; there are: {names}; give --sweep <name> or --parent <run id>"
        )
    return sweeps[0]


def measured(runs: Sequence[Run]) -> list[Measured]:
    """Cells with scores."""
    found = []
    for run in runs:
        if run.info.status == "FINISHED":
            scores, tags = dict(run.data.metrics), run.data.tags
            if run.data.params["objective"] == AR:
                scores.pop("forwards_per_block", None)  # AR has no blocks
            seed = int(run.data.params["seed"])
            found.append(Measured(key=_key(run), seed=seed, scores=scores, name=tags[CELL], base=tags.get(BASE)))
    return found


def study_counts(uri: str, runs: Sequence[Run]) -> tuple[dict[str, StudyCounts], list[str]]:
    """Counts by study of every cell, and a line for each cell without them."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # it would print a bar for each small file
    found, absent = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            if run.info.status != "FINISHED":
                continue
            try:
                path = download_artifacts(
                    run_id=run.info.run_id, artifact_path=STUDIES, dst_path=f"{folder}/{run.info.run_id}", tracking_uri=uri
                )
            except (MlflowException, OSError):
                absent.append(
                    f"{run.info.run_name} has no counts by study, so it is in no test; start the sweep again to make them"
                )
            else:
                found[run.data.tags[CELL]] = StudyCounts.load(Path(path))
    return found, absent


def missing(runs: Sequence[Run], groups: Sequence[Group]) -> list[str]:
    """Lines about planned cells without scores, and groups with fewer seeds than others."""
    lines = []
    for run in sorted(runs, key=lambda run: str(run.info.run_name)):
        if run.info.status == "FAILED":
            lines.append(f"{run.info.run_name} failed: {run.data.tags.get(ERROR, 'for an unknown reason')}")
        elif run.info.status != "FINISHED":
            lines.append(f"{run.info.run_name} has no scores yet ({run.info.status.lower()})")
    planned: dict[Key, set[int]] = {}
    for run in runs:
        planned.setdefault(_key(run), set()).add(int(run.data.params["seed"]))
    every = set().union(*planned.values()) if planned else set()
    there = {one.key: set(one.seeds) for one in groups}
    for key in sorted(planned, key=lambda key: (key[2], key)):
        lacking = sorted(every - there.get(key, set()))
        if lacking:
            label = Group(key=key, seeds=(), means={}).label
            lines.append(f"{label} lacks seed {', '.join(map(str, lacking))} of {', '.join(map(str, sorted(every)))}")
    return lines


def _key(run: Run) -> Key:
    params = run.data.params
    return params["objective"], "" if params["variant"] == "-" else params["variant"], int(params["block_size"])


def compare_sweep(
    *,
    uri: str,
    experiment: str,
    sweep: str | None,
    parent_id: str | None,
    qualities: Sequence[str],
    against: Sequence[str],
    rounds: int,
    level: float,
    out: Path | None,
) -> SweepComparison:
    """Read a sweep from MLflow, compute, print and write the comparison; ``echo-pl compare --help`` explains the arguments.

    Raises:
        ValueError: no such sweep, or none of its cells has scores.
        OSError: MLflow cannot be reached.
    """
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise FileNotFoundError(f"there is no database {uri}; give --mlflow <tracking uri>")
    smaller = [name for name in qualities if name in SMALLER_IS_BETTER]
    if smaller:
        raise ValueError(f"--quality draws fronts where larger is better, which {', '.join(smaller)} is not")
    bound_retries()
    silence_noisy_loggers()
    client = MlflowClient(uri)
    try:
        parent = find_parent(client, experiment, sweep, parent_id)
        runs = children(client, parent.info.experiment_id, parent.info.run_id)
    except MlflowException as error:
        raise OSError(f"MLflow at {uri}: {first_line(error)}") from error
    cells = measured(runs)
    groups = group(cells, [*dict.fromkeys([*COLUMNS, *qualities])], level)
    counts, uncounted = study_counts(uri, runs)
    tested, untested = contrasts(cells, counts, against, rounds=rounds)
    lacking = missing(runs, groups) + uncounted + untested
    if not groups:
        raise ValueError(f"none of the {len(runs)} cells has scores yet: " + "; ".join(lacking[:5]))
    present = [name for name in qualities if any(name in one.means for one in groups)]
    absent = [f"no cell has the score {name}" for name in qualities if name not in present]
    if not present:
        raise ValueError("; ".join(absent))
    found = SweepComparison(
        title=f"Sweep {parent.data.tags[SWEEP]}",
        groups=groups,
        qualities=present,
        columns=[name for name in dict.fromkeys([*qualities, *COLUMNS]) if any(name in one.means for one in groups)],
        missing=[*absent, *lacking],
        drops=drops(cells, present, level),
        contrasts=tested,
        signatures=next((one.signatures for one in counts.values()), {}),
        level=level,
        command=command_line(),
    )
    _write(out or Path("outputs/compare") / parent.data.tags[SWEEP], found)
    return found


def _write(folder: Path, found: SweepComparison) -> None:
    write_text_atomic(folder / "pareto.svg", found.picture())
    write_text_atomic(folder / "compare.md", found.markdown("pareto.svg"))
    write_text_atomic(folder / "index.html", found.page())
    rows = [
        dict(zip(("objective", "variant", "block_size"), one.key, strict=True))
        | {"seeds": one.seeds, "means": {name: asdict(mean) for name, mean in one.means.items()}}
        for one in found.groups
    ]
    content = {
        "level": found.level,
        "groups": rows,
        "drops": [asdict(one) for one in found.drops],
        "contrasts": [asdict(one) for one in found.contrasts],
        "signatures": found.signatures,
        "missing": found.missing,
    }
    write_json(folder / "compare.json", without_nan(content))
    print(found.text() + f"\n\nlook at {folder / 'index.html'}", flush=True)
