"""Pages with the decodes of a few fixed studies, token by token and step by step, after a validation (an observer)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from echo_pl.evaluation.trajectory_html import trajectory_document, trajectory_record
from echo_pl.io.atomic import write_text_atomic
from echo_pl.sampling import TrajectoryRecorder
from echo_pl.structs import Batch

from .observing import ReportData, ReportModule, log_files, observing, report_data


class TrajectoryLogger(Callback):
    """Writes ``trajectories/step-XXXXXX.{html,json}`` under the run's folder, and to MLflow if it is used.

    Args:
        num_samples: studies on the page, always the first ones of the split.
        every_n_validations: write after every n-th validation only.
        split: ``val`` or ``test``.
    """

    def __init__(self, *, num_samples: int = 4, every_n_validations: int = 1, split: str = "val") -> None:
        if num_samples < 1 or every_n_validations < 1:
            raise ValueError(f"num_samples and every_n_validations must be positive, got {num_samples} and {every_n_validations}")
        self.num_samples = num_samples
        self.every_n_validations = every_n_validations
        self.split = split
        self._validations = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decode, draw, write."""
        module = cast(ReportModule, pl_module)
        if trainer.sanity_checking or module.stage_name == "warmup":
            return
        self._validations += 1
        if self._validations % self.every_n_validations:
            return
        # Every rank decodes, since a sharded model needs all of them for its forwards; rank 0 writes.
        with observing(trainer, pl_module):
            data = report_data(trainer)
            batches = data.held_out_batches(self.split, self.num_samples, self.num_samples)
            records = [record for batch in batches for record in _decode(module, data, batch.to(pl_module.device))]
            if trainer.is_global_zero:
                self._write(trainer, module.stage_name, records)

    def _write(self, trainer: Trainer, stage: str, records: list[dict[str, Any]]) -> None:
        folder = Path(trainer.default_root_dir) / "trajectories"
        name = f"step-{trainer.global_step:06d}"
        title = f"{stage}, step {trainer.global_step}: sample reports"
        page = write_text_atomic(folder / f"{name}.html", trajectory_document(title, records))
        content = json.dumps({"stage": stage, "step": trainer.global_step, "samples": records}, ensure_ascii=False)
        log_files(trainer, "trajectories", page, write_text_atomic(folder / f"{name}.json", content))


def _decode(module: ReportModule, data: ReportData, batch: Batch) -> list[dict[str, Any]]:
    """Decode a batch; return one record per study."""
    recorder = TrajectoryRecorder(distributions=False)
    module.sampler.generate(batch, recorder)
    return [
        trajectory_record(trajectory, data.detokenize, data.special, reference)
        for trajectory, reference in zip(recorder.trajectories(batch.keys), batch.references, strict=True)
    ]
