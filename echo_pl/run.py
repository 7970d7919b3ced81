"""One run from one resolved configuration: build data, stage, logger, callbacks and trainer; fit or validate; keep the record.

The only place where the rooms meet. Callbacks come by ``_target_``; nothing here imports them.
"""

from __future__ import annotations

import inspect
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
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import MLFlowLogger
from omegaconf import DictConfig, OmegaConf

from echo_pl.backbone.checkpoint import StageRecord, read_checkpoint
from echo_pl.baseline import ancestor
from echo_pl.data.datamodule import ReportDataModule
from echo_pl.data.response import parse_response
from echo_pl.lineage import backbone_name, data_name, make_lineage, resolve_resume, resolve_start, run_folder
from echo_pl.runs import FINAL, LAST, RunInfo, check_free_disk, now_text, write_info
from echo_pl.stages.validation import TextTools

log = logging.getLogger(__name__)

ROOT_KEYS = frozenset(
    [
        "stage",
        "backbone",
        "data",
        "trainer",
        "callbacks",
        "task",
        "block_size",
        "max_response_tokens",
        "grid",
        "context_attention",
        "seed",
        "threads",
        "run_name",
        "outputs",
        "data_root",
        "start",
        "resume",
        "min_free_gb",
        "mlflow",
        "run",
    ]
)
"""Every key of ``experiments/config.yaml``; a YAML file with another one at the root is refused."""

STAGE_KEYS = frozenset(
    [
        "name",
        "max_steps",
        "batch_size",
        "eval_batch_size",
        "limit_train",
        "validate_every",
        "accumulate",
        "gradient_clip",
        "checkpoint_every",
        "module",
    ]
)
BACKBONE_KEYS = frozenset(["needs_warmup", "factory"])
MLFLOW_KEYS = frozenset(["tracking_uri", "experiment"])
TASKS = ("fit", "validate")


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
    check_keys(config)
    check_free_disk(Path(config.outputs), config.min_free_gb)
    quieten()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data: ReportDataModule = instantiate(config.data, _convert_="all")
    data.setup()
    resume = resolve_resume(config)
    start, before = resolve_start(config, resume)
    folder = run_folder(config, resume)
    chain = before.chain if before is not None and before.chain else folder.name
    logger = make_logger(config, folder, resume)
    lineage = make_lineage(config, data.fingerprint, start, chain, None if logger is None else logger.run_id)
    fill_run_node(config, folder, lineage, before)
    stage = make_stage(config, data, lineage)
    trainer = make_trainer(config, folder, logger)
    if config.task == "validate":
        return validate(trainer, stage, data, folder, resume or start)
    return fit(trainer, stage, data, folder, resume, run_info(config, lineage))


def check_keys(config: DictConfig) -> None:
    """Refuse keys that nothing reads, and tasks that do not exist.

    Raises:
        ValueError: naming the key and those that exist.
    """
    nodes = [
        (config, ROOT_KEYS, ""),
        (config.stage, STAGE_KEYS, "stage."),
        (config.backbone, BACKBONE_KEYS, "backbone."),
        (config.mlflow or {}, MLFLOW_KEYS, "mlflow."),
    ]
    for node, known, name in nodes:
        unknown = sorted(set(map(str, node)) - known)
        if unknown:
            raise ValueError(f"unknown configuration key {name}{unknown[0]}; there are {', '.join(sorted(known))}")
    if config.task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {config.task!r}")


def quieten() -> None:
    """Silence what a user can do nothing about."""
    for noisy in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of a deprecated torch name
    warnings.filterwarnings("ignore", message=".*Your `IterableDataset` has `__len__` defined.*")  # ours is exact
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def make_stage(config: DictConfig, data: ReportDataModule, lineage: StageRecord) -> L.LightningModule:
    """Build the stage; its models come later, in ``configure_model``."""
    stage: L.LightningModule = build(
        config.stage.module,
        backbone=instantiate(config.backbone.factory, _convert_="all"),
        text=text_tools(data),
        lineage=lineage,
        start=lineage.start,
    )
    return stage


def build(node: DictConfig, **ready: Any) -> Any:
    """Call the ``_target_`` of a node with its own keys and with arguments that are ready-made.

    Raises:
        ValueError: a key that the target does not know, or one that it lacks.
    """
    # Partial first: Hydra would turn frozen records among the arguments into dictionaries.
    partial = instantiate(node, _partial_=True, _convert_="all")
    try:
        inspect.signature(partial.func).bind(**partial.keywords, **ready)
    except TypeError as error:
        raise ValueError(f"{node._target_} {error}") from error
    return partial(**ready)


def text_tools(data: ReportDataModule) -> TextTools:
    """What stages need of the data room, ready-made."""
    return TextTools(
        special=data.special,
        vocab_size=data.vocab_size,
        labels=data.labels,
        to_report=lambda tokens: parse_response(data.detokenize(tokens)),
        judge=data.judge,
        fingerprint=data.fingerprint,
    )


def make_trainer(config: DictConfig, folder: Path, logger: MLFlowLogger | None) -> L.Trainer:
    """Build callbacks and trainer."""
    callbacks: list[Callback] = [instantiate(c, _convert_="all") for c in (config.callbacks or {}).values() if c]
    callbacks.append(
        ModelCheckpoint(
            folder / "checkpoints",
            filename=Path(LAST).stem,
            every_n_train_steps=config.stage.checkpoint_every,
            enable_version_counter=False,
        )
    )
    if config.trainer.enable_progress_bar:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    trainer: L.Trainer = build(
        config.trainer,
        default_root_dir=str(folder),
        logger=logger if logger is not None else False,
        callbacks=callbacks,
    )
    return trainer


def make_logger(config: DictConfig, folder: Path, resume: Path | None) -> MLFlowLogger | None:
    """MLflow on a local database unless told otherwise; a resumed run goes on in its own MLflow run."""
    if config.mlflow is None:
        return None
    local = config.mlflow.tracking_uri is None
    outputs = Path(config.outputs).resolve()
    return MLFlowLogger(
        experiment_name=config.mlflow.experiment,
        tracking_uri=f"sqlite:///{outputs / 'mlflow.db'}" if local else config.mlflow.tracking_uri,
        run_name=folder.name,
        run_id=None if resume is None else read_checkpoint(resume)[0].mlflow_run_id,
        artifact_location=str(outputs / "mlartifacts") if local else None,
    )


def fill_run_node(config: DictConfig, folder: Path, lineage: StageRecord, before: StageRecord | None) -> None:
    """Give callbacks what is known only now, and write the resolved configuration beside the checkpoints."""
    path = folder / "config.yaml"
    config.run = {
        "name": folder.name,
        "folder": str(folder),
        "config_path": str(path),
        "chain": lineage.chain,
        "parent_run_id": None if before is None else before.mlflow_run_id,
        "ar_checkpoint": ancestor(lineage.start, before, "pretrain"),
    }
    path.write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")


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
    """Train to the end and write the final checkpoint."""
    began = time.monotonic()
    final = folder / "checkpoints" / FINAL
    log.info("stage %s writes to %s", info.stage, folder)
    with recorded(folder, info, trainer):
        trainer.fit(stage, datamodule=data, ckpt_path=None if resume is None else str(resume), weights_only=False)
        if trainer.interrupted:
            raise KeyboardInterrupt
        trainer.save_checkpoint(final)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return RunOutcome(folder=folder, checkpoint=final, metrics=metrics, seconds=time.monotonic() - began)


def validate(
    trainer: L.Trainer, stage: L.LightningModule, data: ReportDataModule, folder: Path, checkpoint: Path | None
) -> RunOutcome:
    """Validate a checkpoint of this stage, given as ``resume``.

    Raises:
        ValueError: none was given, or one of another stage.
    """
    if checkpoint is None:
        raise ValueError("task=validate needs the checkpoint to validate: give resume=<checkpoint>")
    about, _ = read_checkpoint(checkpoint)
    if about.stage != stage.stage_name:
        raise ValueError(
            f"{checkpoint} is a checkpoint of stage {about.stage!r}; task=validate of stage {stage.stage_name!r} needs one of "
            "its own: give resume=<checkpoint>"
        )
    began = time.monotonic()
    (metrics,) = trainer.validate(stage, datamodule=data, ckpt_path=str(checkpoint), verbose=True, weights_only=False)
    return RunOutcome(folder=folder, checkpoint=checkpoint, metrics=dict(metrics), seconds=time.monotonic() - began)


@contextmanager
def recorded(folder: Path, info: RunInfo, trainer: L.Trainer) -> Iterator[None]:
    """Keep ``run.json`` true to what happens."""

    def note(**changes: Any) -> None:
        if trainer.is_global_zero:
            write_info(folder, replace(info, time=now_text(), **changes))

    note(status="running")
    try:
        yield
    except BaseException:
        note(status="failed")
        last = folder / "checkpoints" / LAST
        if last.is_file():
            log.error("the run did not finish; continue it with resume=%s", last)
        raise
    note(status="finished")
