"""The parts of a run, built from its configuration: stage, trainer, logger. Nothing is started or written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import DictConfig

from echo_pl.backbone.checkpoint import StageRecord
from echo_pl.config.keys import build
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.distributed.agree import slurm_environment
from echo_pl.distributed.launch import detect
from echo_pl.evaluation.cases import parsed_prediction
from echo_pl.io.checkpoints import AtomicCheckpointIO
from echo_pl.io.memory import return_free_memory
from echo_pl.io.run_folders import FINAL
from echo_pl.runs.checkpointing import FinalCheckpoint, GracefulStop, LastCheckpoint
from echo_pl.runs.finite_loss import NonFiniteLoss
from echo_pl.runs.plan import RunPlan
from echo_pl.runs.resume import shards
from echo_pl.stages.validation import TextTools
from echo_pl.tracking.logger import CopyAtValidation, RunLogger


class FreeMemory(Callback):
    """Returns freed memory to the system now and then, on a CPU: batches of changing sizes leave gaps in the heap.

    Without it stage 2 of the demo grew to 4.4 GB.
    """

    EVERY = 100
    """Training batches; one return takes less than 0.1 s."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Return memory every so many batches."""
        if (batch_idx + 1) % self.EVERY == 0 and pl_module.device.type == "cpu":
            return_free_memory()


def make_stage(config: DictConfig, data: ReportDataModule, lineage: StageRecord) -> L.LightningModule:
    """Build the stage; its models come later, in ``configure_model``.

    Raises:
        ValueError: a bad value; the vision warm-up with a trainer that shards.
    """
    if config.stage.name == "warmup" and shards(config):
        raise ValueError("the vision warm-up is small and is not sharded: run `echo-pl stage=warmup` with trainer=cpu, gpu or ddp")
    stage: L.LightningModule = build(
        config.stage.module,
        backbone=instantiate(config.backbone.factory, _convert_="all"),
        text=text_tools(data),
        lineage=lineage,
        start=lineage.start,
    )
    return stage


def text_tools(data: ReportDataModule) -> TextTools:
    """Tools of the data module that stages need."""
    return TextTools(
        special=data.special,
        vocab_size=data.vocab_size,
        labels=data.labels,
        to_report=lambda tokens: parsed_prediction(data.detokenize(tokens)).report,
        judge=data.judge,
        fingerprint=data.fingerprint,
        vision_fingerprint=data.vision_fingerprint,
        word_starts=data.word_starts,
    )


def make_trainer(config: DictConfig, folder: Path, logger: Logger | None, observed: bool = True) -> L.Trainer:
    """Build callbacks and trainer; ``observed``: with the callbacks of the configuration."""
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [FinalCheckpoint(checkpoints / FINAL), FreeMemory()]
    observers = (config.callbacks or {}).values() if observed else ()
    callbacks += [instantiate(entry, _convert_="all") for entry in observers if entry]
    if isinstance(logger, RunLogger):
        callbacks.append(CopyAtValidation(logger))
    callbacks += [NonFiniteLoss(config.stage.on_nonfinite_loss)]
    stop = GracefulStop(checkpoints)
    callbacks += [stop, LastCheckpoint(checkpoints, config.stage.checkpoint_every, stop)]
    if config.trainer.enable_progress_bar:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    trainer: L.Trainer = build(
        config.trainer,
        default_root_dir=str(folder),
        logger=logger if logger is not None else False,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), *cluster_environment()],
    )
    return trainer


def cluster_environment() -> list[ClusterEnvironment]:
    """Environment where Lightning's guess would be wrong: without srun only Lightning starts the processes of a SLURM job."""
    launch = detect()
    if launch.launcher == "srun" and launch.world_size > 1:
        return [slurm_environment()]
    return [LightningEnvironment()] if launch.launcher != "torchrun" and "SLURM_NTASKS" in os.environ else []


def make_logger(config: DictConfig, plan: RunPlan, rank: int) -> Logger | None:
    """Build the MLflow logger: a local database, copied to the configured server.

    Only rank 0 has one: processes that open a new database at the same time would each create its tables.
    """
    if config.mlflow is None:
        return None
    if config.mlflow.on_failure not in ("local", "error"):
        raise ValueError(f"mlflow.on_failure must be local or error, got {config.mlflow.on_failure!r}")
    if rank > 0:
        return DummyLogger()
    uri, artifacts = tracking_place(config)
    is_database = uri.startswith("sqlite:")
    return RunLogger(
        database=uri if is_database else local_database(config),
        artifacts=artifacts if is_database else local_artifacts(config),
        experiment=config.mlflow.experiment,
        name=plan.folder.name,
        run_id=plan.mlflow_run_id,
        skip_logged_steps=plan.same_settings,
        server=None if is_database else uri,
        require_server=config.mlflow.on_failure == "error",
    )


def tracking_place(config: DictConfig) -> tuple[str, str | None]:
    """Return MLflow's tracking URI, and the folder for artifacts of a new experiment (None: the server decides)."""
    if config.mlflow.tracking_uri is None:
        return local_database(config), local_artifacts(config)
    return str(config.mlflow.tracking_uri), None


def local_database(config: DictConfig) -> str:
    """Tracking URI of the database below ``outputs``."""
    return f"sqlite:///{Path(config.outputs).resolve() / 'mlflow.db'}"


def local_artifacts(config: DictConfig) -> str:
    """Folder of the artifacts of that database."""
    return str(Path(config.outputs).resolve() / "mlartifacts")
