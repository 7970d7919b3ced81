"""Parts that the benchmark commands share: a checked configuration, progress, the files of a run, an MLflow run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import torch
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from echo_pl.bench.machine import describe
from echo_pl.bench.models import BenchModel
from echo_pl.config.compose import EXPERIMENTS
from echo_pl.io.atomic import write_bytes_atomic, write_json

Record = dict[str, Any]
"""Content of a benchmark's JSON file: ``machine``, ``config`` and ``rows``."""


@dataclass(kw_only=True)  # not frozen: it is the schema of a YAML file
class Benchmark:
    """Keys of every benchmark's YAML."""

    models: list[str] = MISSING
    contexts: list[int] = MISSING
    repetitions: int = MISSING
    device: str = MISSING
    threads: int | None = MISSING
    out: str = MISSING
    mlflow: str | None = MISSING
    experiment: str = MISSING
    sizes: dict[str, BenchModel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.models or set(self.models) - set(self.sizes):
            raise ValueError(f"models must be among {sorted(self.sizes)}, got {self.models}")
        if self.device not in ("cpu", "cuda") or (self.device == "cuda" and not torch.cuda.is_available()):
            raise ValueError(f"device must be cpu, or cuda where there is one, got {self.device!r}")
        if self.repetitions < 1:
            raise ValueError(f"repetitions must be at least 1, got {self.repetitions}")


T = TypeVar("T", bound=Benchmark)


def load_benchmark(schema: type[T], name: str, overrides: Sequence[str]) -> T:
    """Load ``experiments/bench/<name>.yaml`` with ``key=value`` overrides.

    Raises:
        ValueError: an unknown key, or an invalid value.
    """
    path = EXPERIMENTS / "bench" / f"{name}.yaml"
    try:
        config = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
    except OmegaConfBaseException as error:
        place = f"{error.full_key}: " if error.full_key else ""
        raise ValueError(f"{place}{str(error).splitlines()[0]}; the keys are those of {path}") from error
    return OmegaConf.to_object(config)  # type: ignore[return-value]


def report_progress(text: str) -> None:
    """Print one line of progress."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def run_benchmark(
    config: Benchmark,
    name: str,
    measure: Callable[[Record, torch.device, Callable[[], object]], None],
    report: Callable[[Record], Mapping[str, bytes]],
    metrics: Callable[[Record], Mapping[str, float]],
) -> list[Path]:
    """Measure, write the record and its report, log an MLflow run; return the files written.

    Args:
        config: folder, device, threads and MLflow address.
        name: name of the record (``<name>.json``) and of the MLflow run.
        measure: extends the record, and calls its third argument to save it, so that an interrupted run leaves its rows.
        report: contents of the other files by name.
        metrics: figures of the MLflow run by name.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device, out = torch.device(config.device), Path(config.out)
    record: Record = {"machine": describe(device), "config": asdict(config), "rows": []}
    measure(record, device, lambda: write_json(out / f"{name}.json", record))
    files = [out / f"{name}.json", *(write_bytes_atomic(out / file, content) for file, content in report(record).items())]
    if config.mlflow is not None:
        _log(config, name, record["machine"], metrics(record), files)
    return files


def machine_sentence(record: Record) -> str:
    """Processor, threads, device and torch of a record."""
    machine = record["machine"]
    return (
        f"{machine['processor']}, {machine['threads']} threads of {machine['cores']} cores, device {machine['device']}, "
        f"torch {machine['packages']['torch']}"
    )


def row_metrics(rows: Iterable[Record], row_name: Callable[[Record], str], figures: Sequence[str]) -> dict[str, float]:
    """Figures of all rows under ``<row name>/<figure>``; missing ones are left out."""
    return {f"{row_name(row)}/{name}": float(row[name]) for row in rows for name in figures if row[name] is not None}


def _log(config: Benchmark, name: str, machine: Record, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
    mlflow.set_tracking_uri(str(config.mlflow))
    if str(config.mlflow).startswith("sqlite:///"):
        folder = Path(str(config.mlflow).removeprefix("sqlite:///")).parent.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if mlflow.get_experiment_by_name(config.experiment) is None:  # by default, artifacts would go to the working directory
            mlflow.create_experiment(config.experiment, artifact_location=(folder / "mlartifacts").as_uri())
    mlflow.set_experiment(config.experiment)
    with mlflow.start_run(run_name=name):
        mlflow.log_params({"threads": machine["threads"], "processor": machine["processor"]})
        mlflow.log_dict(machine, "machine.json")
        mlflow.log_dict(asdict(config), "config.json")
        mlflow.log_metrics(dict(metrics))
        for path in files:
            mlflow.log_artifact(str(path))
