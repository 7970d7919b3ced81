"""MLflow on a server that may be down: every write goes to a local database first, and to the server for as long as it answers.

At the end of a run a server that is back gets what it lacks; until then the message says how to upload it. Knows MLflow alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.loggers.logger import rank_zero_experiment
from mlflow import MlflowClient
from mlflow.entities import FileInfo, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from echo_pl.tracking.logger import ContinuedMLFlowLogger
from echo_pl.tracking.upload import LOCAL_RUN, SERVER, SERVER_RUN, be_patient, experiment_id, find_local, upload_run

log = logging.getLogger(__name__)


class MirroredClient(MlflowClient):
    """Writes one run twice and reads it here. Only what is written by the methods below is mirrored; others refuse the run's id.

    Args:
        server: tracking URI of the server.
        place: tracking URI of the local database.
    """

    def __init__(self, server: str, place: str) -> None:
        be_patient()
        super().__init__(place)
        self.server, self.place = server, place
        self.here, self.there = MlflowClient(place), MlflowClient(server)
        self.local_id, self.server_id = "", ""
        self.trouble: str | None = None
        """Why the server is not written to any more; None: it is."""

    def begin(self, experiment: str, artifacts: str, tags: dict[str, Any], run_id: str | None) -> str:
        """Make the run at both places, or find it, and return the id by which it is known: the server's, if it had one.

        Args:
            experiment: under which it is listed.
            artifacts: where those of the local experiment are kept.
            tags: of a new run.
            run_id: of the run to go on with.

        Raises:
            OSError: the run is not known here, and the server, which may know it, cannot be reached.
        """
        own = None if run_id is None else find_local(self.here, run_id)
        if run_id is not None and own is None:
            try:
                own = self._adopt(run_id, experiment, artifacts)
            except (MlflowException, OSError) as error:
                raise OSError(f"run {run_id} is not in {self.place}, and {self.server} cannot give it: {said(error)}") from error
        if own is None:
            own = self.here.create_run(experiment_id(self.here, experiment, artifacts), tags=tags)
        self.local_id = own.info.run_id
        try:
            self.server_id = upload_run(self.here, self.local_id, self.there).run_id  # with what it missed, if anything
            self.there.update_run(self.server_id, "RUNNING")
        except (MlflowException, OSError) as error:
            self._lost(error)
        return run_id or self.server_id or self.local_id

    def _adopt(self, run_id: str, experiment: str, artifacts: str) -> Run:
        """A local run for one that only the server has: it begins where that one stands, with its figures."""
        theirs = self.there.get_run(run_id)
        made = self.here.create_run(
            experiment_id(self.here, experiment, artifacts),
            start_time=theirs.info.start_time,
            tags=theirs.data.tags | {SERVER: self.server, SERVER_RUN: run_id},
        )
        params = [Param(name, value) for name, value in theirs.data.params.items()]
        for start in range(0, len(params), 100):
            self.here.log_batch(made.info.run_id, params=params[start : start + 100])
        for key in theirs.data.metrics:
            history = self.there.get_metric_history(run_id, key)
            for start in range(0, len(history), 1000):
                self.here.log_batch(made.info.run_id, metrics=history[start : start + 1000])
        self.there.set_tag(run_id, LOCAL_RUN, made.info.run_id)
        return self.here.get_run(made.info.run_id)

    def _both(self, write: Callable[[MlflowClient, str], object]) -> None:
        write(self.here, self.local_id)
        if self.trouble is None:
            try:
                write(self.there, self.server_id)
            except (MlflowException, OSError) as error:
                self._lost(error)

    def _lost(self, error: Exception) -> None:
        self.trouble = said(error)
        log.warning(
            "MLflow at %s does not answer (%s); the run goes on, and all of it is kept in %s. It is tried again at the end",
            self.server,
            self.trouble,
            self.place,
        )

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> None:
        """Log at both places."""
        self._both(lambda client, run: client.log_batch(run, metrics=metrics, params=params, tags=tags))

    def log_metric(
        self,
        run_id: str,
        key: str,
        value: float,
        timestamp: int | None = None,
        step: int | None = None,
        synchronous: bool | None = None,
        dataset_name: str | None = None,
        dataset_digest: str | None = None,
        model_id: str | None = None,
    ) -> None:
        """Log at both places, with one time."""
        self.log_batch(run_id, [Metric(key, value, timestamp or int(time.time() * 1000), step or 0)])

    def log_param(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        """Log at both places."""
        self.log_batch(run_id, params=[Param(key, str(value))])

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        """Set at both places."""
        self._both(lambda client, run: client.set_tag(run, key, value))

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        """Copy to both places; MLflow's own log_dict, log_text and log_figure come here too."""
        self._both(lambda client, run: client.log_artifact(run, local_path, artifact_path))

    def log_artifacts(self, run_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        """Copy to both places."""
        self._both(lambda client, run: client.log_artifacts(run, local_dir, artifact_path))

    def log_table(self, run_id: str, data: Any, artifact_file: str) -> None:
        """Log at both places."""
        self._both(lambda client, run: client.log_table(run, data, artifact_file))

    def get_run(self, run_id: str) -> Run:
        """The local run."""
        return self.here.get_run(self.local_id)

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        """Of the local run, which has all of it."""
        return self.here.get_metric_history(self.local_id, key)

    def list_artifacts(self, run_id: str, path: str | None = None) -> list[FileInfo]:
        """Of the local run."""
        return self.here.list_artifacts(self.local_id, path)

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        """End the run at both places; a server that is back gets what it lacks."""
        end_time = end_time or int(time.time() * 1000)
        self._both(lambda client, run: client.set_terminated(run, status, end_time))
        if self.trouble is None:
            return
        try:
            self.server_id = upload_run(self.here, self.local_id, self.there).run_id
        except (MlflowException, OSError) as error:
            log.warning(
                "MLflow at %s still does not answer (%s). Nothing is lost; when it is there again: "
                "echo-pl upload --from %s --to %s --run %s",
                self.server,
                said(error),
                self.place,
                self.server,
                self.local_id,
            )
        else:
            self.trouble = None
            log.info("MLflow at %s is back and has all of run %s", self.server, self.server_id)


class MirroredMLFlowLogger(ContinuedMLFlowLogger):
    """Lightning's logger through a :class:`MirroredClient`.

    Args:
        server: tracking URI of the server.
        place: of the local database.
        artifacts: folder of local artifacts.
        experiment: under which runs are listed.
        name: of the run.
        run_id: of the run to go on with.
        same_settings: steps that are logged already would be logged with the same values, and are left out.
    """

    def __init__(
        self, *, server: str, place: str, artifacts: str, experiment: str, name: str, run_id: str | None, same_settings: bool
    ) -> None:
        super().__init__(experiment_name=experiment, tracking_uri=place, run_name=name, run_id=run_id)
        self._client = self._mlflow_client = MirroredClient(server, place)
        self._artifacts, self._continued = artifacts, run_id is not None and same_settings

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        """The client, once the run is there."""
        if not self._initialized:
            tags = {"mlflow.runName": self._run_name}
            self._run_id = self._client.begin(self._experiment_name, self._artifacts, tags, self._run_id)
            self._experiment_id = self._client.get_run(self._run_id).info.experiment_id
            self._initialized = True
        return self._client

    def _last_step(self, name: str) -> int:
        return super()._last_step(name) if self._continued else -1


def said(error: Exception) -> str:
    """The first line of an error, which may be a page of HTML."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
