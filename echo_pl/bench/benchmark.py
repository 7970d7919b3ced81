"""What the benchmark commands share: a checked configuration, progress, the machine's record, an MLflow run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


def load_benchmark(schema: type, path: Path, overrides: Sequence[str]) -> DictConfig:
    """A benchmark's YAML with overrides, and threads and device set by it.

    Args:
        schema: dataclass that says which keys there are, ``models``, ``sizes``, ``device`` and ``threads`` among them.
        path: of the YAML file.
        overrides: ``key=value``.

    Raises:
        ValueError: an unknown key, a value of the wrong kind, an unknown model, no such device.
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
    """One line of progress."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def log_benchmark(
    config: DictConfig, name: str, machine: Mapping[str, Any], metrics: Mapping[str, float], files: Sequence[Path]
) -> None:
    """One MLflow run with every figure as a metric."""
    mlflow.set_tracking_uri(config.mlflow)
    if str(config.mlflow).startswith("sqlite:///"):
        folder = Path(str(config.mlflow).removeprefix("sqlite:///")).parent.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if mlflow.get_experiment_by_name(config.experiment) is None:  # left alone, artifacts would go to the working directory
            mlflow.create_experiment(config.experiment, artifact_location=(folder / "mlartifacts").as_uri())
    mlflow.set_experiment(config.experiment)
    with mlflow.start_run(run_name=name):
        mlflow.log_params({"threads": machine["threads"], "processor": machine["processor"]})
        mlflow.log_dict(dict(machine), "machine.json")
        mlflow.log_dict({str(key): value for key, value in OmegaConf.to_container(config).items()}, "config.json")  # type: ignore[union-attr]
        mlflow.log_metrics(dict(metrics))
        for path in files:
            mlflow.log_artifact(str(path))
