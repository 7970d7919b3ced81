"""One run from one resolved configuration: fit or validate a stage, and keep the record of it.

The only place, with :mod:`echo_pl.runs.assemble`, where the rooms meet.
"""

from __future__ import annotations

import logging
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, MLFlowLogger
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from echo_pl.backbone.checkpoint import StageRecord, read_checkpoint
from echo_pl.config.keys import check_keys
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.distributed.agree import agreed, open_group, refuse_other_settings, refuse_together
from echo_pl.distributed.launch import Launch, detect, refuse_other_world, warn_of_idle_tasks
from echo_pl.io.run_folders import FINAL, RunInfo, check_free_disk, left_behind, now_text, read_info, write_info
from echo_pl.runs.assemble import make_logger, make_stage, make_trainer, refuse_other_model
from echo_pl.runs.baseline import ancestor
from echo_pl.runs.checkpointing import StoppedError, StopWhenTold
from echo_pl.runs.lineage import adopt_lora, backbone_name, data_name, make_lineage, refuse_other_data
from echo_pl.runs.resume import resolve_resume, run_folder
from echo_pl.runs.start import resolve_start

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What a run leaves behind."""

    folder: Path
    checkpoint: Path
    """The final one; for ``task=validate`` the one that was validated."""
    metrics: dict[str, float]
    seconds: float


def run(config: DictConfig) -> RunOutcome:
    """Carry out ``task`` of a configuration.

    Raises:
        ValueError: a bad value, an unknown key, a checkpoint that does not fit.
        FileNotFoundError: data or a checkpoint is missing.
        OSError: too little free disk.
    """
    launch = join(config)
    data = prepare(config)
    refuse_other_settings(launch, {"the data's fingerprint": data.fingerprint})
    warn_of_other_precision(config, data)
    if config.task == "validate":
        return validate(config, data, resolve_resume(config))
    plan = agreed(launch, plan_of_rank_0(launch, config))
    resume = None if plan["resume"] is None else Path(plan["resume"])
    config.start, folder, chain = plan["start"], Path(plan["folder"]), plan["chain"]
    start, before = resolve_start(config, resume)
    refuse_other_data(data, resume, start, before)
    if config.stage.name == "dcd" and start is None:
        raise ValueError("stage dcd needs a stage-2 checkpoint as its teacher: give start=<path>")
    lineage = make_lineage(config, data, start, chain, before)
    fill_run_node(config, folder, lineage, before)
    # Whatever can be wrong in the configuration shows here, before a folder or an MLflow run is made.
    stage = make_stage(config, data, lineage)
    data.refuse_too_few(config.trainer.devices * config.trainer.num_nodes)
    for checkpoint in dict.fromkeys(path for path in (resume, start) if path is not None):
        refuse_other_model(config, data, checkpoint)
    # The first that leaves something behind: a database.
    logger = make_logger(config, folder, plan["mlflow_run_id"], launch.rank, same_settings=plan["same_settings"])
    trainer = make_trainer(config, folder, logger)
    folder.mkdir(parents=True, exist_ok=True)
    if launch.rank == 0:
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
    run_id, problem = open_mlflow_run(logger)
    refuse_together(launch, problem)
    lineage = stage.lineage = replace(lineage, mlflow_run_id=run_id)  # type: ignore[assignment]
    return fit(trainer, stage, data, folder, resume, run_info(config, lineage))


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
    refuse_other_world(launch, config.trainer.devices, config.trainer.num_nodes)
    open_group(launch, config.trainer.accelerator)
    refuse_other_settings(launch, flat_settings(config))
    return launch


def flat_settings(config: DictConfig) -> dict[str, Any]:
    """Every value of a configuration by its dotted name, as it is used; what only a running run knows is left out."""

    def flat(node: Any, name: str) -> dict[str, Any]:
        if isinstance(node, dict):
            return {key: value for child in node for key, value in flat(node[child], f"{name}.{child}" if name else child).items()}
        try:
            value = OmegaConf.select(config, name)
        except OmegaConfBaseException:  # it refers to what a run fills in
            return {name: node}
        return {name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value}

    return flat(OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "run"])), "")


def warn_of_other_precision(config: DictConfig, data: ReportDataModule) -> None:
    """Stored features round as the tower did that made them."""
    stored = data.stored_precision
    if stored is not None and stored != str(config.trainer.precision):
        log.warning("the stored vision features were computed in %s, this run trains in %s", stored, config.trainer.precision)


def plan_of_rank_0(launch: Launch, config: DictConfig) -> dict[str, Any]:
    """The plan, on rank 0; what is wrong with it is said on all ranks, so that none waits for a rank that has given up."""
    plan: dict[str, Any] = {}
    problem = None
    try:
        plan = make_plan(config) if launch.rank == 0 else {}
    except (ValueError, OSError) as error:
        if launch.world_size == 1:
            raise
        problem = str(error)
    refuse_together(launch, problem)
    return plan


def make_plan(config: DictConfig) -> dict[str, Any]:
    """What all processes of a run must have the same of; each by itself might find another newest run, or another second."""
    resume = resolve_resume(config)
    start, before = resolve_start(config, resume)
    folder = run_folder(config, resume)
    chain = before.chain if before is not None and before.chain else f"{folder.name}-{uuid.uuid4().hex[:8]}"
    unfinished = read_info(folder)  # killed before its first checkpoint, perhaps: it is begun anew in its own MLflow run
    begun = None if unfinished is None else unfinished.mlflow_run_id
    return {
        "resume": None if resume is None else str(resume),
        "start": None if start is None else str(start),
        "folder": str(folder),
        "chain": chain,
        "mlflow_run_id": begun if resume is None else read_checkpoint(resume)[0].mlflow_run_id,
        "same_settings": not warn_of_other_settings(config, folder),
    }


_MAY_CHANGE = {
    "resume",
    "start",
    "start_stage",
    "start_block_size",
    "run_name",
    "task",
    "trainer",
    "callbacks",
    "mlflow",
    "threads",
    "min_free_gb",
    "outputs",
    "sweep",
}
"""Parts of a configuration that decide nothing of what is trained."""


def warn_of_other_settings(config: DictConfig, folder: Path) -> bool:
    """Say with which settings a run goes on that it did not begin with; True if there are any."""
    path = folder / "config.yaml"
    if not path.is_file():
        return False
    had, has = (flat_settings(one) for one in (OmegaConf.load(path), config))  # type: ignore[arg-type]
    names = [name for name in sorted(had.keys() | has.keys()) if name.partition(".")[0] not in _MAY_CHANGE]
    changed = [name for name in names if had.get(name) != has.get(name) and name not in ("data_root", "data.root")]
    if changed:
        pairs = "; ".join(f"{name} was {had.get(name)!r}, is {has.get(name)!r}" for name in changed)
        log.warning("%s goes on with other settings than it began with: %s", folder, pairs)
    return bool(changed)


def prepare(config: DictConfig) -> ReportDataModule:
    """Check the configuration, set threads and seeds, open the data."""
    check_keys(config)
    check_free_disk(Path(config.outputs), config.min_free_gb)
    quieten()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data: ReportDataModule = instantiate(config.data, _convert_="all")
    data.setup()
    return data


def quieten() -> None:
    """Silence what a user can do nothing about."""
    for noisy in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of a deprecated torch name
    warnings.filterwarnings("ignore", message=".*Your `IterableDataset` has `__len__` defined.*")  # ours is exact
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def _is_news(record: logging.LogRecord) -> bool:
    """Drop Lightning's advertisement and its list of devices that are not there."""
    return not record.getMessage().startswith(("💡 Tip", "GPU available", "TPU available"))


def open_mlflow_run(logger: Logger | None) -> tuple[str | None, str | None]:
    """Create the MLflow run, or find the one that is continued.

    Returns:
        Its id, which rank 0 alone has, and what is wrong: the server cannot be reached, or does not know the run.
    """
    try:
        return (logger.run_id if isinstance(logger, MLFlowLogger) else None), None
    except (MlflowException, OSError) as error:
        return None, f"MLflow: {error}; check mlflow.tracking_uri, give mlflow.on_failure=local, or switch it off with mlflow=null"


def fill_run_node(config: DictConfig, folder: Path, lineage: StageRecord, before: StageRecord | None) -> None:
    """Give callbacks what is known only now."""
    config.run = {
        "name": folder.name,
        "folder": str(folder),
        "config_path": str(folder / "config.yaml"),
        "chain": lineage.chain,
        "parent_run_id": None if before is None else before.mlflow_run_id,
        "ar_checkpoint": ancestor(lineage.start, before, "pretrain"),
    }


def run_info(config: DictConfig, lineage: StageRecord) -> RunInfo:
    """The record of the run folder, before it starts."""
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
    told = next(callback for callback in trainer.callbacks if isinstance(callback, StopWhenTold))  # type: ignore[attr-defined]
    with recorded(folder, info, trainer), fitting(resume), told.listening():
        trainer.fit(stage, datamodule=data, ckpt_path=None if resume is None else str(resume), weights_only=True)
        if trainer.interrupted:
            raise KeyboardInterrupt
        final = folder / "checkpoints" / FINAL
        if not final.exists():  # resumed behind its last step, there was no training left that would end
            trainer.save_checkpoint(final)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    seconds = time.monotonic() - began
    return RunOutcome(folder=folder, checkpoint=folder / "checkpoints" / FINAL, metrics=metrics, seconds=seconds)


def validate(config: DictConfig, data: ReportDataModule, checkpoint: Path | None) -> RunOutcome:
    """Validate a checkpoint of this stage, given as ``resume``; nothing of its run is touched.

    Raises:
        ValueError: none was given, or one of another stage.
    """
    if checkpoint is None:
        raise ValueError("task=validate needs the checkpoint to validate: give resume=<checkpoint>")
    adopt_lora(config, checkpoint)
    start, before = resolve_start(config, checkpoint)
    refuse_other_data(data, checkpoint, start, before)
    began = time.monotonic()
    config.callbacks = None
    stage = make_stage(config, data, make_lineage(config, data, start, "", before))
    trainer = make_trainer(config, Path(config.outputs), logger=None)
    with fitting(checkpoint):
        (metrics,) = trainer.validate(stage, datamodule=data, ckpt_path=str(checkpoint), weights_only=True)
    return RunOutcome(
        folder=checkpoint.parent.parent, checkpoint=checkpoint, metrics=dict(metrics), seconds=time.monotonic() - began
    )


@contextmanager
def fitting(checkpoint: Path | None) -> Iterator[None]:
    """Say which checkpoint it is whose weights have other shapes than the model."""
    try:
        yield
    except RuntimeError as error:
        if checkpoint is None or "loading state_dict" not in str(error):
            raise
        raise ValueError(f"{checkpoint} does not fit the model of this configuration: {error}") from error


@contextmanager
def recorded(folder: Path, info: RunInfo, trainer: L.Trainer) -> Iterator[None]:
    """Keep ``run.json`` true to what happens."""

    def note(**changes: Any) -> None:
        if trainer.is_global_zero:
            write_info(folder, replace(info, time=now_text(), **changes))

    note(status="running")
    try:
        yield
    except BaseException as error:
        note(status="stopped" if isinstance(error, StoppedError) else "failed")
        last = left_behind(folder)
        if last is not None:
            log.error("the run did not finish; continue it with resume=%s", last)
        raise
    note(status="finished")
