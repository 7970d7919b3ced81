"""Copy of a run between MLflow stores: every step of every metric, parameters, tags, artifacts, times and status.

Idempotent: a copy that was interrupted is completed by the next one, which leaves what is already there.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

SERVER, SERVER_RUN = "echo_pl.server", "echo_pl.server_run"
"""Tags of a local run: its place on a server. They are not copied."""
LOCAL_RUN = "echo_pl.local_run"
"""Tag of a run on a server: the local run that it is a copy of."""
PARENT = "mlflow.parentRunId"
_METRICS, _OTHERS = 1000, 100
"""Most metrics, and parameters or tags, of one request."""
_ENDED = ("FINISHED", "FAILED", "KILLED")
RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow's own defaults would try for minutes to reach a server that is down."""
T = TypeVar("T")


def bound_retries() -> None:
    """Bound the time that a server may take to answer, unless the user has set it."""
    for name, value in RETRIES.items():
        os.environ.setdefault(name, value)


def first_line(error: Exception) -> str:
    """First line of an error, which may be a page of HTML."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """Id of a run on the server, and the number of items that were new there."""

    run_id: str
    metrics: int = 0
    params: int = 0
    tags: int = 0
    artifacts: int = 0


def upload_run(
    source: MlflowClient, run_id: str, target: MlflowClient, experiment: str | None = None, *, compare_contents: bool = True
) -> Uploaded:
    """Copy a run, and first its parent run, if that is a local one too.

    Args:
        source: store of the run.
        run_id: its id there.
        target: store to copy it to.
        experiment: its experiment there; None: the same name.
        compare_contents: also replace artifacts of the same size and other content.

    Raises:
        ValueError: the run in ``target`` has another value of a parameter.
        OSError: values that were sent are missing in the end.
        MlflowException: a store cannot be reached, or has no such run.
    """
    run = source.get_run(run_id)
    tags = {name: value for name, value in run.data.tags.items() if name not in (SERVER, SERVER_RUN)} | {LOCAL_RUN: run_id}
    if PARENT in tags:
        if has_run(source, tags[PARENT]):
            tags[PARENT] = upload_run(source, tags[PARENT], target, experiment, compare_contents=False).run_id
        elif (parent := _find_by_tag(target, LOCAL_RUN, tags[PARENT])) is not None:  # uploaded from another machine
            tags[PARENT] = parent.info.run_id
    copy = find_copy(source, run, target) or _create(source, run, target, experiment)
    identifier = copy.info.run_id
    source.set_tag(run_id, SERVER, target.tracking_uri)
    source.set_tag(run_id, SERVER_RUN, identifier)
    params = _params(run, copy, target)
    metrics = sum(_metric(source, run_id, target, identifier, key) for key in run.data.metrics)
    artifacts = _artifacts(source, run_id, target, identifier, compare_contents)
    new = [RunTag(name, value) for name, value in tags.items() if copy.data.tags.get(name) != value]
    for batch in _batches(new, _OTHERS):
        target.log_batch(identifier, tags=batch)
    if run.info.status in _ENDED:
        if (copy.info.status, copy.info.end_time) != (run.info.status, run.info.end_time):
            target.set_terminated(identifier, run.info.status, run.info.end_time)
    elif copy.info.status != run.info.status:  # a run that is continued
        target.update_run(identifier, run.info.status)
    return Uploaded(run_id=identifier, params=params, metrics=metrics, artifacts=artifacts, tags=len(new))


def fetch_run(server: MlflowClient, run_id: str, local: MlflowClient, experiment: str, artifacts: str | None) -> Run:
    """Create a local run with the figures of one that only the server has, so that it can be continued.

    Args:
        server: store of the run.
        run_id: its id there, or in the local database that it was uploaded from.
        local: database that receives the copy.
        experiment: name of its experiment here.
        artifacts: folder for artifacts of a new experiment.

    Raises:
        MlflowException: the server cannot be reached, or has no such run.
    """
    run = _find_by_tag(server, LOCAL_RUN, run_id) or server.get_run(run_id)
    identifier = run.info.run_id
    own = {SERVER: server.tracking_uri, SERVER_RUN: identifier}
    place = experiment_id(local, experiment, artifacts)
    copy = local.create_run(place, start_time=run.info.start_time, tags=run.data.tags | own).info.run_id
    for batch in _batches([Param(name, value) for name, value in run.data.params.items()], _OTHERS):
        local.log_batch(copy, params=batch)
    for key in run.data.metrics:
        for values in _batches(server.get_metric_history(identifier, key), _METRICS):
            local.log_batch(copy, metrics=values)
    server.set_tag(identifier, LOCAL_RUN, copy)
    return local.get_run(copy)


def has_run(client: MlflowClient, run_id: str) -> bool:
    """Return True if a store has a run.

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
    """Find a run's copy on the server, by the id that the run has recorded, or by the tag of a copy."""
    recorded = run.data.tags.get(SERVER_RUN) if run.data.tags.get(SERVER) == target.tracking_uri else None
    if recorded is not None and has_run(target, recorded):
        return target.get_run(recorded)
    return _find_by_tag(target, LOCAL_RUN, run.info.run_id)


def find_local(client: MlflowClient, run_id: str) -> Run | None:
    """Find a local run by its id, or by the id of its copy on a server."""
    return client.get_run(run_id) if has_run(client, run_id) else _find_by_tag(client, SERVER_RUN, run_id)


def _find_by_tag(client: MlflowClient, tag: str, value: str) -> Run | None:
    experiments = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`{tag}` = '{value}'", max_results=1) if experiments else []
    return found[0] if found else None


def select_experiment(uri: str, name: str) -> None:
    """Select a store and an experiment for ``mlflow.start_run``.

    A new experiment in a local database keeps its artifacts beside it; MLflow would put them into the working directory.
    """
    mlflow.set_tracking_uri(uri)
    if uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).parent.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if mlflow.get_experiment_by_name(name) is None:
            mlflow.create_experiment(name, artifact_location=(folder / "mlartifacts").as_uri())
    mlflow.set_experiment(name)


def experiment_id(client: MlflowClient, name: str, artifacts: str | None = None) -> str:
    """Return the id of an experiment, which is created if it does not exist."""
    found = client.get_experiment_by_name(name)
    return str(client.create_experiment(name, artifacts) if found is None else found.experiment_id)


def _create(source: MlflowClient, run: Run, target: MlflowClient, experiment: str | None) -> Run:
    name = experiment or source.get_experiment(run.info.experiment_id).name
    tags = {LOCAL_RUN: run.info.run_id, "mlflow.runName": run.info.run_name}
    return target.create_run(experiment_id(target, name), start_time=run.info.start_time, tags=tags)


def _params(run: Run, copy: Run, target: MlflowClient) -> int:
    uploaded = copy.data.params
    for name, value in run.data.params.items():
        if uploaded.get(name, value) != value:
            raise ValueError(
                f"run {copy.info.run_id} has parameter {name}={uploaded[name]}, the local one {value}: it is another run; remove "
                f"the tag {LOCAL_RUN} there to upload this one again"
            )
    new = [Param(name, value) for name, value in run.data.params.items() if name not in uploaded]
    for batch in _batches(new, _OTHERS):
        target.log_batch(copy.info.run_id, params=batch)
    return len(new)


def _metric(source: MlflowClient, run_id: str, target: MlflowClient, copy: str, key: str) -> int:
    new = _missing(source, run_id, target, copy, key)
    for batch in _batches(new, _METRICS):
        target.log_batch(copy, metrics=batch)
    if new and (missing := _missing(source, run_id, target, copy, key)):
        raise OSError(f"{len(missing)} values of {key} are not in run {copy} although they were logged; upload it again")
    return len(new)


def _missing(source: MlflowClient, run_id: str, target: MlflowClient, copy: str, key: str) -> list[Metric]:
    uploaded = {_identity(metric) for metric in target.get_metric_history(copy, key)}
    return [metric for metric in source.get_metric_history(run_id, key) if _identity(metric) not in uploaded]


def _identity(metric: Metric) -> tuple[int, int, float | None]:
    return metric.step, metric.timestamp, None if math.isnan(metric.value) else metric.value


def _artifacts(source: MlflowClient, run_id: str, target: MlflowClient, copy: str, compare_contents: bool) -> int:
    uploaded = _files(target, copy)
    count = 0
    for path, size in _files(source, run_id).items():
        same_size = uploaded.get(path, -1) == size
        if same_size and not compare_contents:
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(source.download_artifacts(run_id, path, folder))
            if same_size:
                other = Path(target.download_artifacts(copy, path, tempfile.mkdtemp(dir=folder)))
                if other.read_bytes() == file.read_bytes():
                    continue
            parent = str(PurePosixPath(path).parent)
            target.log_artifact(copy, str(file), None if parent == "." else parent)
            count += 1
    return count


def _files(client: MlflowClient, run_id: str, folder: str | None = None) -> dict[str, int | None]:
    """Size of every artifact, by path."""
    found: dict[str, int | None] = {}
    for item in client.list_artifacts(run_id, folder):
        found |= _files(client, run_id, item.path) if item.is_dir else {item.path: item.file_size}
    return found


def _batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def upload_runs(source: str, target: str, runs: list[str] | None, experiment: str | None) -> dict[str, Uploaded]:
    """Copy runs from a local database to a server.

    Args:
        source: URI of the database.
        target: URI of the server.
        runs: ids; None: all of the experiment.
        experiment: name; None: all experiments.

    Raises:
        FileNotFoundError: there is no such database.
        OSError: a store cannot be reached; what was copied by then is there.
        ValueError: nothing to upload.
    """
    if source.startswith("sqlite:///") and not Path(source.removeprefix("sqlite:///")).is_file():
        raise FileNotFoundError(f"there is no database {source}")  # MLflow would make an empty one
    bound_retries()
    done: dict[str, Uploaded] = {}
    here, there = MlflowClient(source), MlflowClient(target)
    try:
        for run in runs or _all_runs(here, experiment):
            done[run] = upload_run(here, run, there)
    except MlflowException as error:
        raise OSError(
            f"{len(done)} runs were uploaded to {target}, then: {first_line(error)}; repeat the command for the rest"
        ) from error
    if not done:
        raise ValueError(f"there are no runs in {source}" + ("" if experiment is None else f", experiment {experiment}"))
    return done


def _all_runs(client: MlflowClient, experiment: str | None) -> list[str]:
    """Every run, the oldest first."""
    places = [one.experiment_id for one in client.search_experiments() if experiment in (None, one.name)]
    return [run.info.run_id for run in search_all(client, places, order_by=["attributes.start_time ASC"])]


def search_all(client: MlflowClient, experiments: list[str], query: str = "", order_by: list[str] | None = None) -> list[Run]:
    """Every run of the experiments that matches a query, of any number of pages."""
    found: list[Run] = []
    token: str | None = ""
    while experiments and token is not None:
        page = client.search_runs(experiments, query, max_results=1000, order_by=order_by, page_token=token or None)
        found += page
        token = page.token or None
    return found
