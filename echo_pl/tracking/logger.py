"""MLflow for a run: always logged to a local database, and copied to a server at validations and at the end."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from echo_pl.tracking.upload import bound_retries, fetch_run, find_local, first_line, upload_run

log = logging.getLogger(__name__)


class RunLogger(MLFlowLogger):
    """Lightning's MLflow logger on a local database, which continues runs and copies them to a server.

    A run that was killed has often logged steps that its last checkpoint does not have. They are trained again with the same data
    and noise; logged again, MLflow would draw both values.

    Args:
        database: tracking URI of the local database.
        artifacts: folder for artifacts of a new experiment; None: MLflow's default.
        experiment: name of the experiment.
        name: name of a new run.
        run_id: run to continue, here or on the server; None: a new one.
        skip_logged_steps: leave out the steps that a continued run has logged before.
        server: tracking URI of the server; None: no copies.
        require_server: raise if the server cannot be reached when the run starts.
    """

    def __init__(
        self,
        *,
        database: str,
        artifacts: str | None,
        experiment: str,
        name: str,
        run_id: str | None = None,
        skip_logged_steps: bool = True,
        server: str | None = None,
        require_server: bool = False,
    ) -> None:
        bound_retries()
        super().__init__(experiment_name=experiment, tracking_uri=database, run_name=name, artifact_location=artifacts)
        self.database, self.server = database, server
        self._continued, self._require_server = run_id, require_server
        self._skips = run_id is not None and skip_logged_steps
        self._last_steps: dict[str, int] = {}
        self._failed = False

    def open(self) -> str:
        """Create the run, or find the one to continue, and copy it to the server for the first time.

        Returns:
            Its id in the local database.

        Raises:
            OSError: the run to continue is neither here nor on the server.
            MlflowException: the server is required and cannot be reached.
        """
        if self._continued is not None:
            self._run_id = self._find(self._continued)
            self._mlflow_client.update_run(self._run_id, "RUNNING")
        run_id = str(self.run_id)
        if self.server is not None and self._require_server:
            upload_run(self._mlflow_client, run_id, MlflowClient(self.server))
        else:
            self.copy_to_server()
        return run_id

    def _find(self, run_id: str) -> str:
        found = find_local(self._mlflow_client, run_id)
        if found is None and self.server is not None:
            try:
                server = MlflowClient(self.server)
                found = fetch_run(server, run_id, self._mlflow_client, self._experiment_name, self._artifact_location)
            except (MlflowException, OSError) as error:
                raise OSError(
                    f"run {run_id} is not in {self.database}, and {self.server} cannot give it: {first_line(error)}"
                ) from error
        if found is None:
            raise OSError(f"run {run_id} is not in {self.database}")
        return str(found.info.run_id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics; of a continued run only those that are not logged yet."""
        if self._skips and step is not None:
            metrics = {name: value for name, value in metrics.items() if step > self._last_step(name)}
        if metrics:
            super().log_metrics(metrics, step)

    def _last_step(self, name: str) -> int:
        """Last step of a metric before this process; -1 if it has none."""
        if name not in self._last_steps:
            history = self.experiment.get_metric_history(self.run_id, name)
            self._last_steps[name] = max((metric.step for metric in history), default=-1)
        return self._last_steps[name]

    def copy_to_server(self, *, final: bool = False) -> None:
        """Copy the run to the server, if one is configured. An error is logged once, and the run continues.

        Args:
            final: also compare the contents of artifacts, and log the command for a later upload if this fails.
        """
        if self.server is None:
            return
        generator = random.getstate()  # retries draw their waiting times from it
        try:
            run_id = upload_run(self._mlflow_client, str(self.run_id), MlflowClient(self.server), compare_contents=final).run_id
        except (MlflowException, OSError, ValueError) as error:
            if not self._failed:
                log.warning(
                    "MLflow at %s cannot be reached (%s). The run continues, and all of it is kept in %s. It is copied at a later "
                    "validation, or at the end",
                    self.server,
                    first_line(error),
                    self.database,
                )
            if final:
                log.warning(
                    "MLflow at %s still lacks parts of this run. Nothing is lost; when the server can be reached: "
                    "echo-pl mlflow upload --from %s --to %s --run %s",
                    self.server,
                    self.database,
                    self.server,
                    self.run_id,
                )
            self._failed = True
        else:
            if self._failed:
                log.info("MLflow at %s can be reached again and has all of run %s", self.server, run_id)
            self._failed = False
        finally:
            random.setstate(generator)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """End the run here, then on the server."""
        super().finalize(status)
        if self._initialized:
            self.copy_to_server(final=True)


class CopyAtValidation(Callback):
    """Copies the run to the server after every validation, when all of its figures are logged."""

    def __init__(self, logger: RunLogger) -> None:
        self._logger = logger

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy, on rank 0."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._logger.copy_to_server()
