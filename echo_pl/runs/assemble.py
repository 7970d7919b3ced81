"""From a configuration to the parts of a run: stage, trainer, logger. Builds them; starts nothing and writes nothing.

Callbacks come by ``_target_``; nothing here imports them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from lightning.pytorch.callbacks import Callback, Checkpoint, TQDMProgressBar
from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.loggers.logger import DummyLogger
from omegaconf import DictConfig

from echo_pl.backbone.checkpoint import StageRecord, make_fit, read_checkpoint, stored_vision_fingerprint
from echo_pl.backbone.fingerprint import refuse_other_tower
from echo_pl.config.keys import build
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.distributed.agree import slurm_environment
from echo_pl.distributed.launch import detect
from echo_pl.evaluation.cases import parsed_prediction
from echo_pl.io.checkpoints import WholeFileIO
from echo_pl.io.memory import return_free_memory
from echo_pl.io.run_folders import FINAL
from echo_pl.runs.checkpointing import LastCheckpoint, StopWhenTold
from echo_pl.runs.finite_loss import NonFiniteLoss
from echo_pl.runs.resume import shards
from echo_pl.stages.validation import TextTools
from echo_pl.tracking.logger import ContinuedMLFlowLogger
from echo_pl.tracking.mirror import MirroredMLFlowLogger
from echo_pl.tracking.upload import be_patient


class FinalCheckpoint(Checkpoint):
    """Writes ``final.ckpt`` as soon as training ends, before any observer has its say at the end of the fit."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save."""
        trainer.save_checkpoint(self.path, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        """Where the checkpoint is or will be, as other checkpoint callbacks say it."""
        return {"last_model_path": str(self.path)}


class FreeMemory(Callback):
    """Returns freed memory to the system now and then, on a CPU: batches of ever other sizes leave gaps in the heap.

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


def refuse_other_model(config: DictConfig, data: ReportDataModule, checkpoint: Path) -> None:
    """Refuse weights that do not fit the configuration's model, and features of another tower; builds no more than shapes for that.

    Every rank looks for itself, so that none waits for one that has given up.

    Raises:
        ValueError: naming what differs.
    """
    skeleton = instantiate(config.backbone.factory, _convert_="all").skeleton(data.special, data.vocab_size)
    make_fit(skeleton, checkpoint, *read_checkpoint(checkpoint))
    if data.vision_fingerprint is not None and config.stage.name in ("rad", "dcd"):  # others train theirs, and say so
        refuse_other_tower(data.vision_fingerprint, stored_vision_fingerprint(skeleton, checkpoint))


def text_tools(data: ReportDataModule) -> TextTools:
    """What stages need of the data room, ready-made."""
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


def make_trainer(config: DictConfig, folder: Path, logger: Logger | None) -> L.Trainer:
    """Build callbacks and trainer."""
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [FinalCheckpoint(checkpoints / FINAL), FreeMemory()]
    callbacks += [instantiate(entry, _convert_="all") for entry in (config.callbacks or {}).values() if entry]
    callbacks += [NonFiniteLoss(config.stage.on_nonfinite_loss)]
    told = StopWhenTold(checkpoints)
    callbacks += [told, LastCheckpoint(checkpoints, config.stage.checkpoint_every, told)]
    if config.trainer.enable_progress_bar:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    trainer: L.Trainer = build(
        config.trainer,
        default_root_dir=str(folder),
        logger=logger if logger is not None else False,
        callbacks=callbacks,
        plugins=[WholeFileIO(), *cluster_environment()],
    )
    return trainer


def cluster_environment() -> list[ClusterEnvironment]:
    """What Lightning would guess wrong: without srun nobody but itself starts the processes of a SLURM job."""
    launch = detect()
    if launch.launcher == "srun" and launch.world_size > 1:
        return [slurm_environment()]
    return [LightningEnvironment()] if launch.launcher != "torchrun" and "SLURM_NTASKS" in os.environ else []


def make_logger(config: DictConfig, folder: Path, run_id: str | None, rank: int, same_settings: bool = True) -> Logger | None:
    """MLflow on a local database unless told otherwise; a resumed run goes on in its own MLflow run.

    Rank 0 alone talks to it: processes that open a new database at the same time would each make its tables.

    Args:
        config: of the run.
        folder: of the run.
        run_id: of the MLflow run to go on in; None: a new one.
        rank: of this process.
        same_settings: what is trained again of that run is what was logged of it already.
    """
    if config.mlflow is None:
        return None
    if rank > 0:
        return DummyLogger()
    uri, artifacts = tracking_place(config)
    if config.mlflow.on_failure not in ("local", "error"):
        raise ValueError(f"mlflow.on_failure must be local or error, got {config.mlflow.on_failure!r}")
    be_patient()
    if config.mlflow.on_failure == "local" and uri.startswith(("http://", "https://")):
        return MirroredMLFlowLogger(
            server=uri,
            place=local_database(config),
            artifacts=local_artifacts(config),
            experiment=config.mlflow.experiment,
            name=folder.name,
            run_id=run_id,
            same_settings=same_settings,
        )
    return (ContinuedMLFlowLogger if run_id is not None and same_settings else MLFlowLogger)(
        experiment_name=config.mlflow.experiment,
        tracking_uri=uri,
        run_name=folder.name,
        run_id=run_id,
        artifact_location=artifacts,
    )


def tracking_place(config: DictConfig) -> tuple[str, str | None]:
    """MLflow's tracking URI, and where artifacts of a new experiment go (None: the server says)."""
    if config.mlflow.tracking_uri is None:
        return local_database(config), local_artifacts(config)
    return str(config.mlflow.tracking_uri), None


def local_database(config: DictConfig) -> str:
    """Tracking URI of the database below ``outputs``."""
    return f"sqlite:///{Path(config.outputs).resolve() / 'mlflow.db'}"


def local_artifacts(config: DictConfig) -> str:
    """Folder of the artifacts that belong to it."""
    return str(Path(config.outputs).resolve() / "mlartifacts")
