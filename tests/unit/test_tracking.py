"""A run is logged here and copied to a server, which may be down, die or come back."""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow_server import Server, mlflow_server

from echo_pl.tracking.logger import RunLogger
from echo_pl.tracking.upload import RETRIES, Uploaded, bound_retries, find_copy, upload_run, upload_runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def only_server(folder) -> Iterator[Server]:
    with mlflow_server(folder) as server:
        yield server


@pytest.fixture
def server(only_server) -> Server:
    """Running at the start of every test."""
    only_server.stop()
    only_server.start()
    return only_server


def logger(folder: Path, server: Server, name: str, run_id: str | None = None, **options: bool) -> RunLogger:
    return RunLogger(
        server=server.uri, database=place(folder), artifacts=str(folder / "artifacts"), experiment="copied", name=name,
        run_id=run_id, **options,
    )  # fmt: skip


def place(folder: Path) -> str:
    return f"sqlite:///{folder / 'local.db'}"


def steps(uri: str, run_id: str, key: str = "loss") -> list[int]:
    return [metric.step for metric in MlflowClient(uri).get_metric_history(run_id, key)]


def on_server(folder: Path, server: Server, run_id: str) -> str:
    here = MlflowClient(place(folder))
    copy = find_copy(here, here.get_run(run_id), MlflowClient(server.uri))
    assert copy is not None
    return str(copy.info.run_id)


def test_a_server_has_everything_in_the_end(folder, server):
    one = logger(folder, server, "whole")
    run_id = one.open()
    assert MlflowClient(server.uri).get_run(on_server(folder, server, run_id)).info.status == "RUNNING", "visible from the start"
    one.log_hyperparams({"width": 32})
    one.log_metrics({"loss": 1.5}, 0)
    one.log_metrics({"loss": 0.5}, 1)
    client = one.experiment
    client.log_dict(run_id, {"a": 1}, "deep/er.json")
    client.log_metric(run_id, "speed", 3.0)
    client.set_tag(run_id, "colour", "grey")
    client.log_table(run_id, {"x": [1, 2]}, "table.json")
    generator = random.getstate()
    one.finalize("success")
    assert random.getstate() == generator
    copy = on_server(folder, server, run_id)
    for uri, identifier in ((server.uri, copy), (place(folder), run_id)):
        run = MlflowClient(uri).get_run(identifier)
        assert (run.info.status, run.info.run_name, run.data.tags["colour"]) == ("FINISHED", "whole", "grey")
        assert run.data.params == {"width": "32"}
        assert run.data.metrics == {"loss": 0.5, "speed": 3.0}
        assert steps(uri, identifier) == [0, 1]
        assert MlflowClient(uri).list_artifacts(identifier, "deep")[0].path == "deep/er.json"
    assert upload_run(client, run_id, MlflowClient(server.uri)) == Uploaded(run_id=copy)


def test_a_server_that_dies_and_comes_back_lacks_nothing_in_the_end(folder, server, caplog):
    one = logger(folder, server, "back")
    run_id = one.open()
    one.log_metrics({"loss": 1.0}, 0)
    one.copy_to_server()
    copy = on_server(folder, server, run_id)
    server.stop()
    for step in (1, 2):
        one.log_metrics({"loss": 1.0}, step)
        one.copy_to_server()
    one.experiment.log_dict(run_id, {"a": 1}, "late.json")
    assert caplog.text.count("cannot be reached (") == 1
    assert "is kept in sqlite:///" in caplog.text
    server.start()
    assert steps(server.uri, copy) == [0]
    one.finalize("success")
    assert "can be reached again and has all of run" in caplog.text
    assert steps(server.uri, copy) == [0, 1, 2]
    assert MlflowClient(server.uri).get_run(copy).info.status == "FINISHED"
    assert [item.path for item in MlflowClient(server.uri).list_artifacts(copy)] == ["late.json"]


def test_a_server_that_stays_down_gets_the_run_from_the_command(folder, server, caplog):
    server.stop()
    one = logger(folder, server, "never")
    run_id = one.open()
    for step in range(3):
        one.log_metrics({"loss": float(step)}, step)
    one.finalize("failed")
    command = f"echo-pl mlflow upload --from {place(folder)} --to {server.uri} --run {run_id}"
    assert command in caplog.text
    with pytest.raises(OSError, match=r"0 runs were uploaded to http.*repeat the command for the rest"):
        upload_runs(place(folder), server.uri, [run_id], None)
    server.start()
    done = upload_runs(place(folder), server.uri, [run_id], None)[run_id]
    assert (done.metrics, steps(server.uri, done.run_id)) == (3, [0, 1, 2])
    run, local = MlflowClient(server.uri).get_run(done.run_id), MlflowClient(place(folder)).get_run(run_id)
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FAILED", local.info.start_time, local.info.end_time)
    assert upload_runs(place(folder), server.uri, [run_id], None)[run_id] == Uploaded(run_id=done.run_id)
    # Continued by either of its ids, it stays one run, here and there, and no step is logged twice.
    for identifier, last in ((run_id, 3), (done.run_id, 4)):
        again = logger(folder, server, "never", run_id=identifier)
        assert again.open() == run_id
        assert MlflowClient(server.uri).get_run(done.run_id).info.status == "RUNNING"
        for step in range(2, last + 1):
            again.log_metrics({"loss": 9.0}, step)
        again.finalize("success")
        assert steps(server.uri, done.run_id) == steps(place(folder), run_id) == list(range(last + 1))
        assert MlflowClient(server.uri).get_run(done.run_id).info.status == "FINISHED"


def test_other_settings_are_logged_again(folder, server):
    one = logger(folder, server, "other")
    run_id = one.open()
    one.log_metrics({"loss": 1.0}, 0)
    again = logger(folder, server, "other", run_id=run_id, skip_logged_steps=False)
    again.open()
    again.log_metrics({"loss": 2.0}, 0)
    assert steps(place(folder), run_id) == [0, 0]


def test_a_run_that_only_the_server_has_is_continued(folder, server):
    there = MlflowClient(server.uri)
    run = there.create_run(there.create_experiment("elsewhere"), tags={"mlflow.runName": "theirs"})
    there.log_batch(run.info.run_id, metrics=[Metric("loss", 1.0, 5, 0)], params=[Param("width", "8")])
    one = logger(folder, server, "theirs", run_id=run.info.run_id)
    run_id = one.open()
    for step in (0, 1):
        one.log_metrics({"loss": 0.5}, step)
    one.finalize("success")
    assert steps(server.uri, run.info.run_id) == [0, 1]
    assert steps(place(folder), run_id) == [0, 1]
    server.stop()
    with pytest.raises(OSError, match=r"run 0123 is not in sqlite.*, and http.* cannot give it"):
        logger(folder, server, "theirs", run_id="0123").open()


def test_a_chain_that_moved_to_another_machine_stays_one_chain(folder, server, tmp_path):
    first = logger(folder, server, "first")
    parent = first.open()
    first.finalize("success")
    moved = logger(tmp_path, server, "moved", run_id=parent)  # by the id of the first machine
    copy = on_server(folder, server, parent)
    assert on_server(tmp_path, server, moved.open()) == copy
    child = logger(tmp_path, server, "child")
    run_id = child.open()
    child.experiment.set_tag(run_id, "mlflow.parentRunId", str(moved.run_id))
    child.copy_to_server()
    assert MlflowClient(server.uri).get_run(on_server(tmp_path, server, run_id)).data.tags["mlflow.parentRunId"] == copy


def test_a_required_server_must_be_there(folder, server):
    logger(folder, server, "required", require_server=True).open()
    server.stop()
    with pytest.raises(MlflowException):
        logger(folder, server, "required", require_server=True).open()


def test_everything_is_uploaded_once(folder, server, tmp_path):
    here, there = MlflowClient(place(folder)), MlflowClient(server.uri)
    experiment = here.create_experiment("many", str(tmp_path / "artifacts"))
    parent = here.create_run(experiment, tags={"mlflow.runName": "parent"}).info.run_id
    run = here.create_run(experiment, start_time=1000, tags={"mlflow.parentRunId": parent}).info.run_id
    values = [Metric("loss", math.nan if step == 7 else step / 3, step, step) for step in range(1200)]
    for start in (0, 600):
        here.log_batch(run, metrics=values[start : start + 600])
    here.log_batch(run, metrics=[Metric("loss", 5.0, 3, 3)])  # the same step twice
    here.log_batch(run, params=[Param(f"p{number}", "x") for number in range(100)])
    here.log_batch(run, params=[Param(f"p{number}", "x") for number in range(100, 130)])
    for name in ("one.txt", "a/two.txt", "a/b/three.txt"):
        here.log_text(run, name, name)
    here.set_terminated(run, "FINISHED", 9000)
    done = upload_run(here, run, there)
    assert (done.metrics, done.params, done.artifacts) == (1201, 130, 3)
    copy = there.get_run(done.run_id)
    assert (copy.info.start_time, copy.info.end_time, copy.info.status) == (1000, 9000, "FINISHED")
    assert there.get_run(copy.data.tags["mlflow.parentRunId"]).info.run_name == "parent"
    theirs = {(m.step, m.timestamp, repr(m.value)) for m in there.get_metric_history(done.run_id, "loss")}
    assert theirs == {(m.step, m.timestamp, repr(m.value)) for m in here.get_metric_history(run, "loss")}
    assert upload_run(here, run, there) == Uploaded(run_id=done.run_id)
    here.log_text(run, "ONE.txt", "one.txt")  # other content of the same length
    assert upload_run(here, run, there).artifacts == 1
    other = here.create_run(experiment, tags={"echo_pl.server": server.uri, "echo_pl.server_run": done.run_id}).info.run_id
    here.log_param(other, "p0", "y")
    with pytest.raises(ValueError, match=r"has parameter p0=x, the local one y: it is another run"):
        upload_run(here, other, there)


def test_waiting_is_bounded_unless_the_user_sets_it(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    bound_retries()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    assert os.environ.pop("MLFLOW_HTTP_REQUEST_TIMEOUT") == RETRIES["MLFLOW_HTTP_REQUEST_TIMEOUT"]


def test_a_database_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no database"):
        upload_runs(f"sqlite:///{tmp_path / 'no.db'}", "http://127.0.0.1:9", None, None)
    assert not list(tmp_path.iterdir())


@pytest.fixture(autouse=True)
def _log_everything(caplog) -> None:
    caplog.set_level(logging.INFO)
