"""A sweep in MLflow: one parent run, and a child run for every cell with its parameters and its scores or its error.

The source is the files of the jobs, so a restarted sweep logs everything that MLflow has missed.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig

from echo_pl.runs.assemble import tracking_place
from echo_pl.sweeps.cells import Cell
from echo_pl.sweeps.plan import SCORES as SCORES_FILE
from echo_pl.sweeps.plan import STUDIES, measurement
from echo_pl.tracking.upload import PARENT, bound_retries, experiment_id, first_line, search_all

CELL, ERROR, SCORES, RUN_NAME = "echo_pl.cell", "echo_pl.error", "echo_pl.scores", "mlflow.runName"
_LOG_VERSION = 2
"""Version of the logged metrics; a new one makes finished cells be logged again."""
BASE = "echo_pl.base"
"""Tag of a cell: name of its AR model."""
SWEEP = "echo_pl.sweep"
"""Tag of a parent run: the sweep's name."""


class SweepRecord:
    """Keeps MLflow up to date with a sweep.

    Args:
        config: configuration of any of its jobs.
    """

    def __init__(self, config: DictConfig) -> None:
        if config.mlflow is None:
            raise ValueError("the cells of a sweep are compared from MLflow: leave mlflow=null out")
        self.name = str(config.sweep.name)
        self.experiment = str(config.mlflow.experiment)
        self.uri, self.artifacts = tracking_place(config)
        self.patient = config.mlflow.on_failure == "local"
        self.measured = measurement(config)
        self.runs = Path(config.outputs) / "runs"
        self.parent: str | None = None
        self._planned: Sequence[Cell] = ()
        self._children: dict[str, Run] = {}
        self._trouble: str | None = None

    @property
    def compare_command(self) -> str:
        """Command that shows the sweep."""
        return f"echo-pl compare --mlflow {self.uri} --experiment {self.experiment} --sweep {self.name}"

    def begin(self, cells: Sequence[Cell]) -> None:
        """Find or create the parent run and a child for every cell.

        Raises:
            OSError: MLflow cannot be reached, and ``mlflow.on_failure`` is ``error``.
        """
        bound_retries()
        self._planned = cells
        self._try(self._open)
        if self._trouble is not None and not self.patient:
            raise OSError(f"MLflow at {self.uri} cannot be reached ({self._trouble}); start it, or give mlflow.on_failure=local")

    def log(self, cells: Sequence[Cell], scores: Mapping[str, Mapping[str, float]], failed: Mapping[str, str]) -> None:
        """Log every cell with something new."""

        def everything() -> None:
            if self.parent is None:
                self._open()
            for cell in cells:
                if cell.part in scores:
                    self._finished(cell, scores[cell.part])
                elif cell.part in failed:
                    self._failed(cell, failed[cell.part])

        self._try(everything)

    def end(self, failed: bool) -> None:
        """Close the parent run, and report if MLflow has missed something."""
        if self._trouble is None and self.parent is not None:
            parent = self.parent
            self._try(lambda: MlflowClient(self.uri).set_terminated(parent, "FAILED" if failed else "FINISHED"))
        if self._trouble is not None:
            print_notice(
                f"MLflow at {self.uri} did not accept the sweep's scores ({self._trouble}). They are in the run folders: start the "
                "same command again when the server is up; it logs the missing scores and trains nothing again"
            )

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (MlflowException, OSError) as error:
            if self._trouble is None:
                print_notice(f"MLflow at {self.uri}: {first_line(error)}; the sweep continues and tries again")
            self._trouble = first_line(error)
        else:
            self._trouble = None

    def _open(self) -> None:
        client = MlflowClient(self.uri)
        experiment = experiment_id(client, self.experiment, self.artifacts)
        parents = client.search_runs([experiment], f"tags.`{SWEEP}` = '{self.name}'", max_results=1)
        if parents:
            parent = parents[0]
            client.update_run(parent.info.run_id, "RUNNING")
        else:
            parent = client.create_run(experiment, tags={RUN_NAME: self.name, SWEEP: self.name})
        identifier = parent.info.run_id
        for name, value in self.measured.items():
            client.set_tag(identifier, f"echo_pl.measured.{name}", str(value))
        self._children = {run.data.tags[CELL]: run for run in children(client, experiment, identifier)}
        for cell in self._planned:
            if cell.part not in self._children:
                tags = {RUN_NAME: cell.label, PARENT: identifier, CELL: cell.part, BASE: cell.base}
                run = client.create_run(experiment, tags=tags)
                client.log_batch(run.info.run_id, params=[Param(name, value) for name, value in cell.params.items()])
                client.update_run(run.info.run_id, "SCHEDULED")
                self._children[cell.part] = client.get_run(run.info.run_id)
        self.parent = identifier

    def _finished(self, cell: Cell, scores: Mapping[str, float]) -> None:
        digest = hashlib.sha256(json.dumps([_LOG_VERSION, dict(scores)], sort_keys=True).encode()).hexdigest()[:16]
        run = self._children[cell.part]
        if run.info.status == "FINISHED" and run.data.tags.get(SCORES) == digest:
            return
        client, identifier = MlflowClient(self.uri), run.info.run_id
        # MLflow shows the largest of several values of one time, so a new measurement needs a new time, and the same one its old.
        file = self.runs / cell.part / SCORES_FILE
        time = max(run.info.start_time, int(file.stat().st_mtime * 1000) if file.is_file() else 0)
        metrics = [Metric(name, float(value), time, 0) for name, value in scores.items() if math.isfinite(value)]
        client.log_batch(identifier, metrics=metrics)
        if (studies := self.runs / cell.part / STUDIES).is_file():
            client.log_artifact(identifier, str(studies))
        client.set_tag(identifier, SCORES, digest)
        if ERROR in run.data.tags:
            client.delete_tag(identifier, ERROR)
        client.set_terminated(identifier, "FINISHED")
        self._children[cell.part] = client.get_run(identifier)

    def _failed(self, cell: Cell, message: str) -> None:
        run = self._children[cell.part]
        if run.info.status == "FAILED" and run.data.tags.get(ERROR) == message[:500]:
            return
        client = MlflowClient(self.uri)
        client.set_tag(run.info.run_id, ERROR, message[:500])
        client.set_terminated(run.info.run_id, "FAILED")
        self._children[cell.part] = client.get_run(run.info.run_id)


def print_notice(text: str) -> None:
    """Print to stderr, because Hydra replaces log handlers."""
    print(f"echo-pl: {text}", file=sys.stderr, flush=True)


def children(client: MlflowClient, experiment: str, parent: str) -> list[Run]:
    """Runs of all cells of a sweep, of any status."""
    return [run for run in search_all(client, [experiment], f"tags.`{PARENT}` = '{parent}'") if CELL in run.data.tags]
