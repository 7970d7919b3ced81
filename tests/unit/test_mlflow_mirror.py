"""A server that is down, dies or comes back: a run has all of its figures here, and there what can be there."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow_server import Server, mlflow_server

from echo_pl.cli.mlflow_upload import upload
from echo_pl.tracking.mirror import MirroredClient, MirroredMLFlowLogger
from echo_pl.tracking.upload import PATIENCE, Uploaded, be_patient, upload_run


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


def logger(folder: Path, server: Server, name: str, run_id: str | None = None) -> MirroredMLFlowLogger:
    return MirroredMLFlowLogger(
        server=server.uri, place=place(folder), artifacts=str(folder / "artifacts"), experiment="mirror", name=name,
        run_id=run_id, same_settings=True,
    )  # fmt: skip


def place(folder: Path) -> str:
    return f"sqlite:///{folder / 'local.db'}"


def steps(uri: str, run_id: str, key: str = "loss") -> list[int]:
    return [metric.step for metric in MlflowClient(uri).get_metric_history(run_id, key)]


def client_of(one: MirroredMLFlowLogger) -> MirroredClient:
    client = one.experiment
    assert isinstance(client, MirroredClient)
    return client


def test_a_server_that_is_there_has_all_that_is_here(folder, server):
    one = logger(folder, server, "whole")
    one.log_hyperparams({"width": 32})
    one.log_metrics({"loss": 1.5}, 0)
    one.log_metrics({"loss": 0.5}, 1)
    client = client_of(one)
    client.log_dict(one.run_id, {"a": 1}, "deep/er.json")
    client.log_metric(one.run_id, "speed", 3.0)
    client.set_tag(one.run_id, "colour", "grey")
    client.log_table(one.run_id, {"x": [1, 2]}, "table.json")
    one.finalize("success")
    assert one.run_id == client.server_id != client.local_id
    for uri, run_id in ((server.uri, client.server_id), (place(folder), client.local_id)):
        run = MlflowClient(uri).get_run(run_id)
        assert (run.info.status, run.info.run_name, run.data.tags["colour"]) == ("FINISHED", "whole", "grey")
        assert run.data.params == {"width": "32"}
        assert run.data.metrics == {"loss": 0.5, "speed": 3.0}
        assert steps(uri, run_id) == [0, 1]
        assert MlflowClient(uri).list_artifacts(run_id, "deep")[0].path == "deep/er.json"
    assert upload_run(client.here, client.local_id, client.there) == Uploaded(run_id=client.server_id)


def test_a_server_that_dies_and_comes_back_lacks_nothing_in_the_end(folder, server, caplog):
    one = logger(folder, server, "back")
    one.log_metrics({"loss": 1.0}, 0)
    server.stop()
    for step in (1, 2):
        one.log_metrics({"loss": 1.0}, step)
    client = client_of(one)
    client.log_dict(one.run_id, {"a": 1}, "late.json")
    assert caplog.text.count("does not answer") == 1
    assert "is kept in sqlite:///" in caplog.text
    server.start()
    assert steps(server.uri, client.server_id) == [0]
    one.finalize("success")
    assert steps(server.uri, client.server_id) == [0, 1, 2]
    assert MlflowClient(server.uri).get_run(client.server_id).info.status == "FINISHED"
    assert [item.path for item in MlflowClient(server.uri).list_artifacts(client.server_id)] == ["late.json"]


def test_a_server_that_stays_down_gets_the_run_from_the_tool(folder, server, caplog):
    server.stop()
    one = logger(folder, server, "never")
    for step in range(3):
        one.log_metrics({"loss": float(step)}, step)
    one.finalize("failed")
    client = client_of(one)
    assert one.run_id == client.local_id
    command = f"echo-pl upload --from {place(folder)} --to {server.uri} --run {client.local_id}"
    assert command in caplog.text
    with pytest.raises(OSError, match=r"0 runs were uploaded to http.*start it again for the rest"):
        upload(place(folder), server.uri, [client.local_id], None)
    server.start()
    done = upload(place(folder), server.uri, [client.local_id], None)[client.local_id]
    assert (done.metrics, steps(server.uri, done.run_id)) == (3, [0, 1, 2])
    run = MlflowClient(server.uri).get_run(done.run_id)
    local = MlflowClient(place(folder)).get_run(client.local_id)
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FAILED", local.info.start_time, local.info.end_time)
    assert upload(place(folder), server.uri, [client.local_id], None)[client.local_id] == Uploaded(run_id=done.run_id)
    # Gone on with by the id it had here, it stays one run, here and there.
    again = logger(folder, server, "never", run_id=client.local_id)
    for step in (2, 3):
        again.log_metrics({"loss": 9.0}, step)
    again.finalize("success")
    assert steps(server.uri, done.run_id) == [0, 1, 2, 3]


def test_a_run_that_only_the_server_knows_is_gone_on_with(folder, server):
    there = MlflowClient(server.uri)
    run = there.create_run(there.create_experiment("elsewhere"), tags={"mlflow.runName": "theirs"})
    there.log_batch(run.info.run_id, metrics=[Metric("loss", 1.0, 5, 0)], params=[Param("width", "8")])
    one = logger(folder, server, "theirs", run_id=run.info.run_id)
    for step in (0, 1):
        one.log_metrics({"loss": 0.5}, step)
    one.finalize("success")
    assert steps(server.uri, run.info.run_id) == [0, 1]
    assert steps(place(folder), client_of(one).local_id) == [0, 1]
    server.stop()
    with pytest.raises(OSError, match=r"run 0123 is not in sqlite.*, and http.* cannot give it"):
        _ = logger(folder, server, "theirs", run_id="0123").run_id


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


def test_waiting_is_bounded_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    be_patient()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    assert os.environ.pop("MLFLOW_HTTP_REQUEST_TIMEOUT") == PATIENCE["MLFLOW_HTTP_REQUEST_TIMEOUT"]


def test_a_database_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no database"):
        upload(f"sqlite:///{tmp_path / 'no.db'}", "http://127.0.0.1:9", None, None)
    assert not list(tmp_path.iterdir())


@pytest.fixture(autouse=True)
def _said(caplog) -> None:
    caplog.set_level(logging.INFO)
