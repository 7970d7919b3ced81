"""Copies a run from one MLflow store to another: every step of every metric, parameters, tags, artifacts, times and status.

Idempotent: what is there is compared and left, so a copy that was cut off is finished by the next one. Knows MLflow alone.
"""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

SERVER, SERVER_RUN = "echo_pl.server", "echo_pl.server_run"
"""Tags of a local run: where it is on a server. They stay here."""
LOCAL_RUN = "echo_pl.local_run"
"""Tag of a run on a server: of which local run it is a copy."""
PARENT = "mlflow.parentRunId"
_AT_ONCE = 1000
"""Metrics that MLflow takes in one request; of parameters and tags 100."""
_ENDED = ("FINISHED", "FAILED", "KILLED")
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow would try for minutes to reach a server that is down."""


def be_patient() -> None:
    """Bound the time that a server may take to answer; what the user has set counts."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """Where a run is now, and what of it was not there before."""

    run_id: str
    metrics: int = 0
    params: int = 0
    tags: int = 0
    artifacts: int = 0


def upload_run(source: MlflowClient, run_id: str, target: MlflowClient, experiment: str | None = None) -> Uploaded:
    """Copy a run, and first the run it is shown under, if that is a local one too.

    Args:
        source: where it is.
        run_id: of the run there.
        target: where it goes.
        experiment: under which it is listed there; None: as it is here.

    Raises:
        ValueError: the run there has another value of a parameter.
        OSError: it is not all there in the end.
        MlflowException: a store cannot be reached, or has no such run.
    """
    run = source.get_run(run_id)
    tags = {name: value for name, value in run.data.tags.items() if name not in (SERVER, SERVER_RUN)} | {LOCAL_RUN: run_id}
    parent = tags.get(PARENT)
    if parent is not None and has_run(source, parent):
        tags[PARENT] = upload_run(source, parent, target, experiment).run_id
    copy = find_copy(source, run, target) or _create(source, run, target, experiment)
    identifier = copy.info.run_id
    source.set_tag(run_id, SERVER, target.tracking_uri)
    source.set_tag(run_id, SERVER_RUN, identifier)
    done = Uploaded(
        run_id=identifier,
        params=_params(run, copy, target),
        metrics=sum(_metric(source, run_id, target, identifier, key) for key in run.data.metrics),
        artifacts=_artifacts(source, run_id, target, identifier),
    )
    new = [RunTag(name, value) for name, value in tags.items() if copy.data.tags.get(name) != value]
    for start in range(0, len(new), 100):
        target.log_batch(identifier, tags=new[start : start + 100])
    if run.info.status in _ENDED and (copy.info.status, copy.info.end_time) != (run.info.status, run.info.end_time):
        target.set_terminated(identifier, run.info.status, run.info.end_time)
    return replace(done, tags=len(new))


def has_run(client: MlflowClient, run_id: str) -> bool:
    """Whether a store knows a run.

    Raises:
        MlflowException: it cannot be reached.
    """
    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.get_http_status_code() == 404:
            return False
        raise
    return True


def find_copy(source: MlflowClient, run: Run, target: MlflowClient) -> Run | None:
    """The run on the server that is this one, if there is any: by its id, or by the tag that a copy has."""
    known = run.data.tags.get(SERVER_RUN) if run.data.tags.get(SERVER) == target.tracking_uri else None
    if known is not None and has_run(target, known):
        return target.get_run(known)
    experiments = [one.experiment_id for one in target.search_experiments()]
    found = target.search_runs(experiments, f"tags.`{LOCAL_RUN}` = '{run.info.run_id}'", max_results=1) if experiments else []
    return found[0] if found else None


def find_local(client: MlflowClient, server_run: str) -> Run | None:
    """The local run that is the copy of a server's, or has this id itself."""
    if has_run(client, server_run):
        return client.get_run(server_run)
    experiments = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`{SERVER_RUN}` = '{server_run}'", max_results=1) if experiments else []
    return found[0] if found else None


def experiment_id(client: MlflowClient, name: str, artifacts: str | None = None) -> str:
    """Of an experiment, which is made if it is not there."""
    found = client.get_experiment_by_name(name)
    return str(client.create_experiment(name, artifacts) if found is None else found.experiment_id)


def _create(source: MlflowClient, run: Run, target: MlflowClient, experiment: str | None) -> Run:
    name = experiment or source.get_experiment(run.info.experiment_id).name
    tags = {LOCAL_RUN: run.info.run_id, "mlflow.runName": run.info.run_name}
    return target.create_run(experiment_id(target, name), start_time=run.info.start_time, tags=tags)


def _params(run: Run, copy: Run, target: MlflowClient) -> int:
    had = copy.data.params
    for name, value in run.data.params.items():
        if had.get(name, value) != value:
            raise ValueError(
                f"run {copy.info.run_id} has parameter {name}={had[name]}, the local one {value}: it is another run; remove "
                f"the tag {LOCAL_RUN} there to upload this one anew"
            )
    new = [Param(name, value) for name, value in run.data.params.items() if name not in had]
    for start in range(0, len(new), 100):
        target.log_batch(copy.info.run_id, params=new[start : start + 100])
    return len(new)


def _metric(source: MlflowClient, run_id: str, target: MlflowClient, copy: str, key: str) -> int:
    new = _missing(source, run_id, target, copy, key)
    for start in range(0, len(new), _AT_ONCE):
        target.log_batch(copy, metrics=new[start : start + _AT_ONCE])
    if new and (left := _missing(source, run_id, target, copy, key)):
        raise OSError(f"{len(left)} values of {key} are not in run {copy} although they were logged; upload it again")
    return len(new)


def _missing(source: MlflowClient, run_id: str, target: MlflowClient, copy: str, key: str) -> list[Metric]:
    there = {_identity(metric) for metric in target.get_metric_history(copy, key)}
    return [metric for metric in source.get_metric_history(run_id, key) if _identity(metric) not in there]


def _identity(metric: Metric) -> tuple[int, int, float | None]:
    return metric.step, metric.timestamp, None if math.isnan(metric.value) else metric.value


def _artifacts(source: MlflowClient, run_id: str, target: MlflowClient, copy: str) -> int:
    there = _files(target, copy)
    count = 0
    for path, size in _files(source, run_id).items():
        with tempfile.TemporaryDirectory() as folder:
            ours = Path(source.download_artifacts(run_id, path, folder))
            if there.get(path) == size:
                theirs = Path(target.download_artifacts(copy, path, tempfile.mkdtemp(dir=folder)))
                if theirs.read_bytes() == ours.read_bytes():
                    continue
            parent = str(PurePosixPath(path).parent)
            target.log_artifact(copy, str(ours), None if parent == "." else parent)
            count += 1
    return count


def _files(client: MlflowClient, run_id: str, folder: str | None = None) -> dict[str, int | None]:
    """Size of every artifact, by path."""
    found: dict[str, int | None] = {}
    for item in client.list_artifacts(run_id, folder):
        found |= _files(client, run_id, item.path) if item.is_dir else {item.path: item.file_size}
    return found
