"""One run from one resolved configuration: build data, stage, logger, callbacks and trainer; fit or validate; keep the record.

The only place where the rooms meet. Callbacks come by ``_target_``; nothing here imports them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from omegaconf import DictConfig, OmegaConf

from echo_pl.backbone.checkpoint import StageRecord, read_checkpoint
from echo_pl.data.datamodule import ReportDataModule
from echo_pl.data.response import parse_response
from echo_pl.runs import (
    FINAL,
    LAST,
    RunInfo,
    check_free_disk,
    newest,
    newest_unfinished,
    now_text,
    read_info,
    write_info,
)
from echo_pl.stages.validation import TextTools

log = logging.getLogger(__name__)

ROOT_KEYS = frozenset(
    "stage backbone data trainer callbacks task block_size max_response_tokens grid context_attention seed threads run_name "
    "outputs data_root start resume min_free_gb mlflow run".split()
)
"""Every key of ``experiments/config.yaml``; a YAML file with another one at the root is refused."""

BEFORE = {"warmup": (), "pretrain": ("warmup",), "rad": ("pretrain",), "dcd": ("rad",)}


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What a run leaves behind."""

    folder: Path
    checkpoint: Path | None
    metrics: dict[str, float]
    seconds: float
    module: L.LightningModule
    data: ReportDataModule


def run(config: DictConfig) -> RunOutcome:
    """Carry out ``task`` of a configuration.

    Raises:
        ValueError: a bad value, an unknown key, a checkpoint that does not fit.
        FileNotFoundError: data or a checkpoint is missing.
        OSError: too little free disk.
    """
    check_keys(config)
    outputs = Path(config.outputs)
    check_free_disk(outputs, config.min_free_gb)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data: ReportDataModule = instantiate(config.data, _convert_="all")
    data.setup()
    resume = resolve_resume(config, outputs)
    start, before = resolve_start(config, outputs, resume)
    folder = run_folder(config, outputs, resume)
    chain = before.chain if before is not None and before.chain else folder.name
    logger = make_logger(config, folder, resume)
    lineage = make_lineage(config, data, start, chain, logger)
    fill_run_node(config, folder, chain, None if before is None else before.mlflow_run_id)
    # Partial first: Hydra would turn frozen records among the arguments into dictionaries.
    make_module = instantiate(config.stage.module, _partial_=True, _convert_="all")
    module: L.LightningModule = make_module(
        backbone=instantiate(config.backbone.factory, _convert_="all"),
        text=text_tools(data),
        lineage=lineage,
        start=None if start is None else str(start),
    )
    callbacks = [instantiate(entry, _convert_="all") for entry in (config.callbacks or {}).values() if entry]
    checkpointing = ModelCheckpoint(
        folder / "checkpoints", filename="last", every_n_train_steps=config.stage.checkpoint_every, save_top_k=1,
        enable_version_counter=False,
    )  # fmt: skip
    make_trainer = instantiate(config.trainer, _partial_=True, _convert_="all")
    trainer: L.Trainer = make_trainer(
        default_root_dir=str(folder),
        logger=logger if logger is not None else False,
        callbacks=[*callbacks, checkpointing],
    )
    info = RunInfo(
        stage=config.stage.name,
        backbone=backbone_name(config),
        block_size=lineage.block_size,
        data=data_name(config),
        status="running",
        time=now_text(),
        start=None if start is None else str(start),
        chain=chain,
        mlflow_run_id=lineage.mlflow_run_id,
    )
    began = datetime.now()
    if config.task == "validate":
        metrics = trainer.validate(module, datamodule=data, ckpt_path=None if resume is None else str(resume), verbose=True)
        seconds = (datetime.now() - began).total_seconds()
        return RunOutcome(
            folder=folder, checkpoint=resume, metrics=dict(metrics[0]), seconds=seconds, module=module, data=data
        )
    if trainer.is_global_zero:
        log.info("%s writes to %s", config.stage.name, folder)
    with recorded(folder, info, trainer):
        trainer.fit(module, datamodule=data, ckpt_path=None if resume is None else str(resume))
        if trainer.interrupted:
            raise KeyboardInterrupt
        final = folder / "checkpoints" / FINAL
        trainer.save_checkpoint(final)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    seconds = (datetime.now() - began).total_seconds()
    return RunOutcome(folder=folder, checkpoint=final, metrics=metrics, seconds=seconds, module=module, data=data)


def check_keys(config: DictConfig) -> None:
    """Refuse keys that nothing reads, and tasks that do not exist."""
    unknown = sorted(set(map(str, config)) - ROOT_KEYS)
    if unknown:
        raise ValueError(f"unknown configuration key {unknown[0]!r}; keys at the root are {', '.join(sorted(ROOT_KEYS))}")
    if config.task not in ("fit", "validate"):
        raise ValueError(f"task must be fit or validate, got {config.task!r}")
    known = {"name", "max_steps", "batch_size", "eval_batch_size", "limit_train", "validate_every", "accumulate"}
    known |= {"gradient_clip", "checkpoint_every", "module"}
    unknown = sorted(set(map(str, config.stage)) - known)
    if unknown:
        raise ValueError(f"unknown configuration key stage.{unknown[0]}; keys of a stage are {', '.join(sorted(known))}")


def backbone_name(config: DictConfig) -> str:
    """Name of the backbone: the factory's, by class, with what makes weights fit or not."""
    factory = config.backbone.factory
    return str(factory._target_).rsplit(".", 1)[-1]


def data_name(config: DictConfig) -> str:
    """The corpus folder's name."""
    return Path(config.data.root).name


def resolve_resume(config: DictConfig, outputs: Path) -> Path | None:
    """The checkpoint to continue from, if any."""
    if config.resume is None:
        return None
    if config.resume != "auto":
        return Path(config.resume)
    found = newest_unfinished(outputs, config.stage.name)
    if found is None:
        raise FileNotFoundError(f"no unfinished run of stage {config.stage.name} under {outputs}/runs to resume")
    log.info("resuming from %s", found)
    return found


def resolve_start(config: DictConfig, outputs: Path, resume: Path | None) -> tuple[Path | None, StageRecord | None]:
    """The checkpoint of the stage before and its record; says which one ``auto`` found."""
    stage = config.stage.name
    if resume is not None:
        record, _ = read_checkpoint(resume)
        if record.stage != stage:
            raise ValueError(f"{resume} is a checkpoint of stage {record.stage!r}; it cannot resume stage {stage!r}")
        start = None if record.start is None else Path(record.start)
        return start, None if start is None else read_checkpoint(start)[0]
    if config.start is None or not BEFORE[stage]:
        return None, None
    if config.start != "auto":
        return Path(config.start), read_checkpoint(config.start)[0]
    if stage == "pretrain" and not config.backbone.needs_warmup:
        return None, None
    wanted_block = config.block_size if stage == "dcd" else None
    found = newest(outputs, BEFORE[stage], backbone_name(config), data_name(config), wanted_block)
    if found is None:
        block = "" if wanted_block is None else f" with block_size {wanted_block}"
        raise FileNotFoundError(
            f"stage {stage} starts from a finished {BEFORE[stage][0]} run{block} on data {data_name(config)!r}, and there is "
            f"none under {outputs}/runs; run `echo-pl stage={BEFORE[stage][0]}` first, or give start=<checkpoint>"
        )
    folder, info = found
    path = folder / "checkpoints" / FINAL
    log.info("starting from %s (stage %s, %s)", path, info.stage, info.time)
    return path, read_checkpoint(path)[0]


def run_folder(config: DictConfig, outputs: Path, resume: Path | None) -> Path:
    """Where this run writes; the old folder when it resumes a run of this place."""
    if resume is not None and read_info(resume.parent.parent) is not None:
        return resume.parent.parent
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    block = "" if config.stage.name in ("warmup", "pretrain") else f"-L{config.block_size}"
    folder = outputs / "runs" / (config.run_name or f"{config.stage.name}{block}-{stamp}")
    if folder.exists() and read_info(folder) is not None and config.run_name is None:
        folder = folder.with_name(f"{folder.name}-{datetime.now().microsecond:06d}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_logger(config: DictConfig, folder: Path, resume: Path | None) -> MLFlowLogger | None:
    """MLflow on a local database unless told otherwise; a resumed run goes on in its own MLflow run."""
    if config.mlflow is None:
        return None
    uri = config.mlflow.tracking_uri or f"sqlite:///{(Path(config.outputs) / 'mlflow.db').resolve()}"
    run_id = None
    if resume is not None:
        run_id = read_checkpoint(resume)[0].mlflow_run_id
    return MLFlowLogger(
        experiment_name=config.mlflow.experiment,
        tracking_uri=uri,
        run_name=folder.name,
        run_id=run_id,
        artifact_location=None if config.mlflow.tracking_uri else str((Path(config.outputs) / "mlartifacts").resolve()),
    )


def make_lineage(
    config: DictConfig, data: ReportDataModule, start: Path | None, chain: str, logger: MLFlowLogger | None
) -> StageRecord:
    """What every checkpoint of this run will say of itself."""
    diffusion = config.stage.name in ("rad", "dcd")
    return StageRecord(
        stage=config.stage.name,
        backbone=backbone_name(config),
        block_size=config.block_size if diffusion else None,
        grid=config.grid,
        context_attention=config.context_attention,
        data_fingerprint=data.fingerprint,
        start=None if start is None else str(start),
        chain=chain,
        mlflow_run_id=None if logger is None else logger.run_id,
    )


def fill_run_node(config: DictConfig, folder: Path, chain: str, parent_run_id: str | None) -> None:
    """Give callbacks what is known only now, and write the resolved configuration beside the checkpoints."""
    path = folder / "config.yaml"
    config.run = {
        "name": folder.name,
        "folder": str(folder),
        "config_path": str(path),
        "chain": chain,
        "parent_run_id": parent_run_id,
    }
    path.write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")


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
