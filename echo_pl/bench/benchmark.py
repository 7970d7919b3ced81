"""Shared parts of the benchmarks: a checked configuration, progress, an MLflow run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from echo_pl.tracking.upload import select_experiment


def load_benchmark(schema: type, path: Path, overrides: Sequence[str]) -> DictConfig:
    """Load a benchmark's YAML with overrides.

    Args:
        schema: dataclass of the keys, with ``models``, ``sizes``, ``device`` and ``threads``.
        path: YAML file.
        overrides: ``key=value``.

    Raises:
        ValueError: an unknown key or model, a value of the wrong type, a device that does not exist.
    """
    try:
        config = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
    except OmegaConfBaseException as error:
        place = f"{error.full_key}: " if error.full_key else ""
        raise ValueError(f"{place}{str(error).splitlines()[0]}; the keys are those of {path}") from error
    assert isinstance(config, DictConfig)
    unknown = sorted(set(config.models) - set(config.sizes))
    if unknown or not config.models:
        raise ValueError(f"models must be among {sorted(config.sizes)}, got {list(config.models)}")
    if config.device not in ("cpu", "cuda") or (config.device == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device must be cpu, or cuda where there is one, got {config.device!r}")
    return config


def say(text: str) -> None:
    """Print one line of progress to stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def log_benchmark(
    config: DictConfig, name: str, machine: Mapping[str, Any], metrics: Mapping[str, float], files: Sequence[Path]
) -> None:
    """Log one MLflow run with every figure as a metric."""
    select_experiment(str(config.mlflow), config.experiment)
    with mlflow.start_run(run_name=name):
        mlflow.log_params({"threads": machine["threads"], "processor": machine["processor"]})
        mlflow.log_dict(dict(machine), "machine.json")
        mlflow.log_dict({str(key): value for key, value in OmegaConf.to_container(config).items()}, "config.json")  # type: ignore[union-attr]
        mlflow.log_metrics(dict(metrics))
        for path in files:
            mlflow.log_artifact(str(path))
