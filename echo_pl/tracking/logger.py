"""MLflow for a run that goes on: a step that was logged before the run died, behind its last checkpoint, is not logged twice.

Knows MLflow's histories; nothing of runs or checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.loggers import MLFlowLogger


class ContinuedMLFlowLogger(MLFlowLogger):
    """Lightning's logger, in a run that is there already.

    A run that is killed has often logged steps that its last checkpoint does not have. They are trained again, and with the same
    data and noise; MLflow would keep both values and draw both.
    """

    _logged: dict[str, int] | None = None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log what is not there yet."""
        new = {name: value for name, value in metrics.items() if step is None or step > self._last_step(name)}
        if new:
            super().log_metrics(new, step)

    def _last_step(self, name: str) -> int:
        """The last step of a metric before this process; -1 where there is none."""
        if self._logged is None:
            self._logged = {}
        if name not in self._logged:
            history = self.experiment.get_metric_history(self.run_id, name)
            self._logged[name] = max((metric.step for metric in history), default=-1)
        return self._logged[name]
