"""A whole run whose MLflow server is down, or dies in the middle: it trains to its end, and nothing of it is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
from mlflow import MlflowClient
from mlflow_server import Server, mlflow_server
from ranks import SIZES, SMALL

from echo_pl.backbone.checkpoint import read_checkpoint
from echo_pl.config.compose import compose_config
from echo_pl.runs.run import RunOutcome, run
from echo_pl.tracking.upload import SERVER_RUN, upload_runs

pytestmark = pytest.mark.slow

OWN = [
    *(one for one in SMALL if one not in ("mlflow=null", "callbacks=none")), *SIZES, "stage=pretrain", "start=null",
    "stage.batch_size=4", "trainer.log_every_n_steps=1", "stage.validate_every=2", "data.limit_val=2",
    "callbacks.trajectories=null", "callbacks.summary=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_data) -> Path:
    folder = tmp_path_factory.mktemp("down")
    (folder / "data").symlink_to(tiny_data)
    return folder


@pytest.fixture(scope="module")
def server(root) -> Iterator[Server]:
    with mlflow_server(root) as running:
        yield running


class Dies(L.Callback):
    """Takes the server away at the start of this step."""

    server: Server

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.at:
            self.server.stop()


def start_run(root: Path, outputs: Path, server: Server, *overrides: str) -> RunOutcome:
    places = [f"data_root={root / 'data'}", f"outputs={outputs}", f"mlflow.tracking_uri={server.uri}"]
    return run(compose_config([*OWN, *places, *overrides]))


def test_a_server_that_dies_in_the_middle_of_a_run(root, server, tmp_path, caplog):
    Dies.server = server
    made = start_run(root, tmp_path, server, f"+callbacks.dies={{_target_: {__name__}.Dies, at: 2}}")
    place = f"sqlite:///{tmp_path / 'mlflow.db'}"
    local_id = read_checkpoint(made.checkpoint)[0].mlflow_run_id
    assert caplog.text.count("The run continues, and all of it is kept in " + place) == 1
    assert f"echo-pl mlflow upload --from {place} --to {server.uri} --run " in caplog.text
    server.start()
    here, there = MlflowClient(place), MlflowClient(server.uri)
    run_id = here.get_run(local_id).data.tags[SERVER_RUN]
    assert [metric.step for metric in there.get_metric_history(run_id, "train/loss")] == [0, 1], "as of the validation"
    assert len(there.get_metric_history(run_id, "val/loss")) == 1
    assert {"config.yaml", "environment.json"} <= {item.path for item in there.list_artifacts(run_id)}
    (done,) = upload_runs(place, server.uri, None, "echo_pl").values()
    assert done.run_id == run_id
    assert [metric.step for metric in there.get_metric_history(run_id, "train/loss")] == [0, 1, 2]
    assert there.get_run(run_id).info.status == "FINISHED"


def test_a_run_that_requires_its_server_does_not_start_without_it(root, server, tmp_path):
    server.stop()
    with pytest.raises(ValueError, match=r"check mlflow.tracking_uri, give mlflow.on_failure=local"):
        start_run(root, tmp_path, server, "mlflow.on_failure=error")
    with pytest.raises(ValueError, match=r"mlflow.on_failure must be local or error, got 'wait'"):
        start_run(root, tmp_path, server, "mlflow.on_failure=wait")
    assert not list(tmp_path.rglob("*.ckpt"))
