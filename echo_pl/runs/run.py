"""One run from one configuration: read the plan, check it, build the parts, fit or validate, keep the record."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig, OmegaConf

from echo_pl.backbone.checkpoint import StageRecord
from echo_pl.config.keys import check_keys, flat_settings
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.distributed.agree import check_same_settings, open_group, raise_on_all_ranks
from echo_pl.distributed.launch import Launch, check_world_size, detect, warn_of_idle_tasks
from echo_pl.io.run_folders import FINAL, RunInfo, check_free_disk, now_text, resumable_checkpoint, write_info
from echo_pl.runs.assemble import make_logger, make_stage, make_trainer
from echo_pl.runs.checkpointing import GracefulStop, StoppedError
from echo_pl.runs.lineage import backbone_name, check_same_data, data_name, make_lineage, with_saved_adapters
from echo_pl.runs.plan import agree_on_plan, check_plan, with_run_node
from echo_pl.runs.resume import check_same_stage, read_resume
from echo_pl.runs.start import read_start_of_resumed
from echo_pl.tracking.logger import RunLogger

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """Result of a run."""

    folder: Path
    checkpoint: Path
    """The final one; for ``task=validate`` the one that was validated."""
    metrics: dict[str, float]
    seconds: float


def run(config: DictConfig) -> RunOutcome:
    """Carry out ``task`` of a configuration, which is not changed.

    Raises:
        ValueError: a bad value, an unknown key, a checkpoint that does not fit.
        FileNotFoundError: data or a checkpoint is missing.
        OSError: too little free disk.
    """
    launch = join(config)
    data = prepare(config)
    check_same_settings(launch, {"the data's fingerprint": data.fingerprint})
    warn_of_other_precision(config, data)
    if config.task == "validate":
        return validate(config, data)
    plan = agree_on_plan(launch, config)
    check_plan(plan, config, data)
    plan = plan.without_contents()
    config = with_run_node(config, plan)
    lineage = make_lineage(config, data, plan.start, plan.chain)
    stage = make_stage(config, data, lineage)
    # Errors of the configuration have been raised by now. The logger is the first to leave something behind: a database.
    logger = make_logger(config, plan, launch.rank)
    trainer = make_trainer(config, plan.folder, logger)
    plan.folder.mkdir(parents=True, exist_ok=True)
    if launch.rank == 0:
        (plan.folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
    run_id = open_mlflow_run(launch, logger)
    lineage = stage.lineage = replace(lineage, mlflow_run_id=run_id)  # type: ignore[assignment]
    return fit(trainer, stage, data, plan.folder, None if plan.resume is None else plan.resume.path, run_info(config, lineage))


def join(config: DictConfig) -> Launch:
    """Find the other processes of this run.

    Raises:
        ValueError: a launcher started others than the trainer is configured for, or with other configurations.
    """
    launch = detect()
    warn_of_idle_tasks(launch)
    for name in ("devices", "num_nodes"):
        value = config.trainer[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"trainer.{name} must be a positive number, got {value!r}; which devices: CUDA_VISIBLE_DEVICES")
    check_world_size(launch, config.trainer.devices, config.trainer.num_nodes)
    open_group(launch, config.trainer.accelerator)
    check_same_settings(launch, flat_settings(config))
    return launch


def warn_of_other_precision(config: DictConfig, data: ReportDataModule) -> None:
    """Warn if stored features were rounded in another precision than the trainer's."""
    stored = data.stored_precision
    if stored is not None and stored != str(config.trainer.precision):
        log.warning("the stored vision features were computed in %s, this run trains in %s", stored, config.trainer.precision)


def prepare(config: DictConfig) -> ReportDataModule:
    """Check the configuration, set threads and seeds, open the data."""
    check_keys(config)
    check_free_disk(Path(config.outputs), config.min_free_gb)
    silence_noisy_loggers()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data: ReportDataModule = instantiate(config.data, _convert_="all")
    data.setup()
    return data


def silence_noisy_loggers() -> None:
    """Silence messages of libraries that a user cannot act on."""
    for noisy in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_relevant)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of a deprecated torch name
    warnings.filterwarnings("ignore", message=".*Your `IterableDataset` has `__len__` defined.*")  # ours is exact
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drop Lightning's advertisement, its list of absent devices and its banner of a process group."""
    return not record.getMessage().startswith(("💡 Tip", "GPU available", "TPU available", "-" * 100))


def open_mlflow_run(launch: Launch, logger: Logger | None) -> str | None:
    """Create the MLflow run, or find the one that is continued; only rank 0 has its id.

    Raises:
        ValueError: on all ranks; the server or the run cannot be reached.
    """
    run_id = problem = None
    try:
        run_id = logger.open() if isinstance(logger, RunLogger) else None
    except (MlflowException, OSError) as error:
        problem = f"MLflow: {error}; check mlflow.tracking_uri, give mlflow.on_failure=local, or switch it off with mlflow=null"
    raise_on_all_ranks(launch, problem)
    return run_id


def run_info(config: DictConfig, lineage: StageRecord) -> RunInfo:
    """Record of the run folder before the run starts."""
    return RunInfo(
        stage=lineage.stage,
        backbone=backbone_name(config),
        block_size=lineage.block_size,
        data=data_name(config),
        status="running",
        time=now_text(),
        start=lineage.start,
        chain=lineage.chain,
        mlflow_run_id=lineage.mlflow_run_id,
    )


def fit(
    trainer: L.Trainer,
    stage: L.LightningModule,
    data: ReportDataModule,
    folder: Path,
    resume: Path | None,
    info: RunInfo,
) -> RunOutcome:
    """Train to the end; the final checkpoint is written by its callback."""
    began = time.monotonic()
    log.info("stage %s writes to %s", info.stage, folder)
    stop = next(callback for callback in trainer.callbacks if isinstance(callback, GracefulStop))  # type: ignore[attr-defined]
    with recorded(folder, info, trainer), explained_misfit(resume), stop.listening():
        trainer.fit(stage, datamodule=data, ckpt_path=None if resume is None else str(resume), weights_only=True)
        if trainer.interrupted:
            raise KeyboardInterrupt
        final = folder / "checkpoints" / FINAL
        if not final.exists():  # resumed after its last step: no training was left that would end
            trainer.save_checkpoint(final)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    seconds = time.monotonic() - began
    return RunOutcome(folder=folder, checkpoint=folder / "checkpoints" / FINAL, metrics=metrics, seconds=seconds)


def validate(config: DictConfig, data: ReportDataModule) -> RunOutcome:
    """Validate a checkpoint of this stage, given as ``resume``; its run is not changed.

    Raises:
        ValueError: none was given, or one of another stage.
    """
    resume = read_resume(config)
    if resume is None:
        raise ValueError("task=validate needs the checkpoint to validate: give resume=<checkpoint>")
    config = with_saved_adapters(config, resume.record)
    check_same_stage(config, resume)
    start = read_start_of_resumed(config, resume)
    check_same_data(data, start, resume)
    began = time.monotonic()
    stage = make_stage(config, data, make_lineage(config, data, start, ""))
    trainer = make_trainer(config, Path(config.outputs), logger=None, observed=False)
    with explained_misfit(resume.path):
        (metrics,) = trainer.validate(stage, datamodule=data, ckpt_path=str(resume.path), weights_only=True)
    return RunOutcome(
        folder=resume.path.parent.parent, checkpoint=resume.path, metrics=dict(metrics), seconds=time.monotonic() - began
    )


@contextmanager
def explained_misfit(checkpoint: Path | None) -> Iterator[None]:
    """Name the checkpoint if its weights have other shapes than the model."""
    try:
        yield
    except RuntimeError as error:
        if checkpoint is None or "loading state_dict" not in str(error):
            raise
        raise ValueError(f"{checkpoint} does not fit the model of this configuration: {error}") from error


@contextmanager
def recorded(folder: Path, info: RunInfo, trainer: L.Trainer) -> Iterator[None]:
    """Keep the status in ``run.json`` up to date."""

    def note(**changes: Any) -> None:
        if trainer.is_global_zero:
            write_info(folder, replace(info, time=now_text(), **changes))

    note(status="running")
    try:
        yield
    except BaseException as error:
        note(status="stopped" if isinstance(error, StoppedError) else "failed")
        last = resumable_checkpoint(folder)
        if last is not None:
            log.error("the run did not finish; continue it with resume=%s", last)
        raise
    note(status="finished")
