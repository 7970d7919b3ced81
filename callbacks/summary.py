"""Summary at the end of a stage: steps, time, results, location (an observer)."""

from __future__ import annotations

import time
from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from echo_pl.io.memory import peak_memory_gb

from .observing import mlflow_runs


class StageSummary(Callback):
    """Prints the summary on rank 0 when a fit ends."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time."""
        self._started = time.monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print."""
        if not trainer.is_global_zero:
            return
        lines = summary_lines(trainer, time.monotonic() - self._started)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in lines.items():
            grid.add_row(name, value)
        Console().print(Panel(grid, title=f"stage {pl_module.stage_name} finished", title_align="left", expand=False))


def summary_lines(trainer: Trainer, seconds: float) -> dict[str, str]:
    """The summary as label and value."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    lines = {
        "steps": f"{trainer.global_step} in {trainer.current_epoch} epochs",
        "time": f"{seconds:.1f} s",
        "peak memory": f"{peak_memory_gb():.2f} GB",
    }
    lines |= _group(metrics, "train/", "last training") | _group(metrics, "val/", "last validation")
    lines |= _group(metrics, "speed/", "speed")
    checkpoint = trainer.checkpoint_callback
    if checkpoint is not None:
        paths = checkpoint.state_dict()
        lines["checkpoint"] = paths.get("last_model_path") or paths.get("best_model_path") or "none written"
    for _, run_id in mlflow_runs(trainer):
        lines["MLflow run"] = run_id
    return lines


def _group(metrics: Mapping[str, float], prefix: str, label: str) -> dict[str, str]:
    chosen = [f"{name.removeprefix(prefix)} {value:.4g}" for name, value in sorted(metrics.items()) if name.startswith(prefix)]
    return {label: "  ".join(chosen)} if chosen else {}
