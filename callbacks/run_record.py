"""Record of a run in MLflow: configuration, code, data, environment, and its place in a chain (an observer)."""

from __future__ import annotations

import os
import platform
import subprocess
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import echo_pl

from .observing import log_files, mlflow_runs, preserved_rng, report_data

PACKAGES = ("torch", "lightning", "transformers", "torchmetrics", "webdataset", "mlflow")


class RunRecord(Callback):
    """Logs to every MLflow run of the trainer when a fit starts; does nothing without MLflow.

    Args:
        config: resolved configuration, as nested plain values or as the path of its YAML file.
        stage: tag ``echo_pl.stage``.
        chain: tag ``echo_pl.chain``, shared by the stages that build on one another.
        parent_run_id: MLflow run that lists this one (tag ``mlflow.parentRunId``).
    """

    def __init__(
        self,
        *,
        config: Mapping[str, Any] | Path | str,
        stage: str,
        chain: str | None = None,
        parent_run_id: str | None = None,
    ) -> None:
        self.config = config
        tags = {"echo_pl.stage": stage, "echo_pl.chain": chain, "mlflow.parentRunId": parent_run_id}
        self.tags = {name: value for name, value in tags.items() if value is not None}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the record."""
        if not trainer.is_global_zero:
            return
        with preserved_rng():  # MLflow draws names from the global generators
            tags = self.tags | git_revision(Path(echo_pl.__file__).parent)
            tags["echo_pl.dataset_fingerprint"] = report_data(trainer).fingerprint
            for client, run_id in mlflow_runs(trainer):
                for name, value in tags.items():
                    client.set_tag(run_id, name, value)
                client.log_dict(run_id, environment(), "environment.json")
                if not isinstance(self.config, (str, Path)):
                    client.log_dict(run_id, dict(self.config), "config.yaml")
            if isinstance(self.config, (str, Path)):
                log_files(trainer, "", Path(self.config))


def git_revision(folder: Path) -> dict[str, str]:
    """Tags with the revision of the code in ``folder``, and uncommitted changes; warns without git."""
    try:
        revision = _git(folder, "rev-parse", "HEAD")
        dirty = bool(_git(folder, "status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError) as error:
        warnings.warn(f"the git revision of {folder} is unknown and not logged: {error}", stacklevel=2)
        return {}
    return {"echo_pl.git_revision": revision, "echo_pl.git_dirty": str(dirty).lower()}


def environment() -> dict[str, Any]:
    """Versions and machine properties that influence figures."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "torch_threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
