"""The checkpoint that a run resumes, and the folder that it writes to: never over another run's."""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig

from echo_pl.backbone.checkpoint import is_checkpoint
from echo_pl.backbone.sharded_files import is_sharded_checkpoint
from echo_pl.config.keys import target
from echo_pl.io.atomic import replace_path
from echo_pl.io.run_folders import LAST, PREVIOUS, newest_unfinished, read_info, resumable_checkpoint
from echo_pl.runs.lineage import SavedCheckpoint, backbone_name, data_name, lora_record

log = logging.getLogger(__name__)


def read_resume(config: DictConfig) -> SavedCheckpoint | None:
    """Find and read the checkpoint to resume, if any.

    Raises:
        FileNotFoundError: ``resume=auto`` and no unfinished run of this stage (and of this ``run_name``) has a checkpoint.
        ValueError: ``resume=if_any`` without a ``run_name``; a checkpoint that this configuration cannot resume.
    """
    if config.resume is None:
        return None
    saved = _read_newest(config) if config.resume in ("auto", "if_any") else SavedCheckpoint.read(Path(config.resume))
    if saved is not None:
        check_trainer_can_resume(config, saved)
        if config.resume in ("auto", "if_any"):
            log.info("resuming from %s", saved.path)
    return saved


def _read_newest(config: DictConfig) -> SavedCheckpoint | None:
    if config.resume == "if_any" and config.run_name is None:
        raise ValueError("resume=if_any resumes the run of this name, or begins it: give run_name=<name>")
    outputs = Path(config.outputs)
    found = newest_unfinished(outputs, config.stage.name, backbone_name(config), data_name(config), config.run_name)
    if found is not None:
        return last_readable_checkpoint(found)
    if config.run_name is not None:
        check_same_run(config, outputs / "runs" / config.run_name)
        if config.resume == "if_any":
            return None
    name = "" if config.run_name is None else f" and name {config.run_name!r}"
    raise FileNotFoundError(
        f"no unfinished run of stage {config.stage.name}{name} with a checkpoint under {outputs}/runs; "
        "give resume=<checkpoint>, or leave resume out to start a new run"
    )


def check_same_run(config: DictConfig, folder: Path) -> None:
    """Check that no other run has a checkpoint in this folder: it would be lost.

    Raises:
        ValueError: the run there is of another stage, backbone or data, or its record cannot be read.
    """
    last = resumable_checkpoint(folder)
    if last is None:
        return
    info = read_info(folder)
    if info is None:
        raise ValueError(f"{folder} has a checkpoint and no readable run.json: resume={last}, or give another run_name")
    wanted = (("stage", config.stage.name), ("backbone", backbone_name(config)), ("data", data_name(config)))
    for name, value in wanted:
        if getattr(info, name) != value:
            raise ValueError(
                f"{folder} is an unfinished run of {name} {getattr(info, name)}, this one is of {value}: give another run_name"
            )


def check_trainer_can_resume(config: DictConfig, saved: SavedCheckpoint) -> None:
    """Check that the trainer's strategy can read a checkpoint, and would give its optimizer states to the right weights.

    Raises:
        ValueError: with the trainers that can resume it.
    """
    path = saved.path
    if is_sharded_checkpoint(path) and not shards(config):
        raise ValueError(
            f"{path} is sharded, and this trainer does not shard: resume it with trainer=fsdp2, or make one file of it: "
            f"echo-pl checkpoint merge {path} {path.with_suffix('.merged.ckpt')}"
        )
    if shards(config) and config.task == "fit" and path.is_file() and is_numbered_by_groups(saved):
        raise ValueError(
            f"{path} was written by a trainer that does not shard, and this one does: resume it with trainer=cpu, gpu or ddp"
        )


def shards(config: DictConfig) -> bool:
    """Return True if the trainer's strategy distributes one model over the ranks."""
    strategy = config.trainer.get("strategy")
    return isinstance(strategy, DictConfig) and issubclass(target(strategy), ModelParallelStrategy)


def is_numbered_by_groups(saved: SavedCheckpoint) -> bool:
    """Return True if optimizer states are numbered group after group, as by all trainers that do not shard.

    Trainers that shard keep names, or number weights in the order of the model.
    """
    for optimizer in saved.content.get("optimizer_states") or ():
        numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
        if numbers == list(range(len(numbers))):
            return True
    return False


def last_readable_checkpoint(last: Path) -> SavedCheckpoint:
    """Read the last checkpoint of a run, or with a warning the one before it if the last is torn.

    A torn one is moved aside, so that it does not become ``previous.ckpt``.

    Raises:
        ValueError: it is torn, and there is none before it.
        FileNotFoundError: it is a folder without its list of files, and there is none before it.
    """
    try:
        return SavedCheckpoint.read(last)
    except (ValueError, FileNotFoundError) as error:
        previous = last.with_name(PREVIOUS)
        if last.name != LAST or not is_checkpoint(previous):
            raise
        torn = last.with_name(LAST + ".torn")
        log.warning("%s; it is now %s, and the run resumes from the checkpoint before it, %s", error, torn, previous)
        replace_path(last, torn)
        return SavedCheckpoint.read(previous)


def check_same_stage(config: DictConfig, resume: SavedCheckpoint) -> None:
    """Check that a run resumes a checkpoint of its own stage, block layout and adapters.

    Raises:
        ValueError: naming the difference.
    """
    record, path = resume.record, resume.path
    if record.stage != config.stage.name:
        raise ValueError(f"{path} is a checkpoint of stage {record.stage!r}; it cannot resume stage {config.stage.name!r}")
    if record.block_size is None:
        return
    for name in ("block_size", "grid", "context_attention"):
        saved = getattr(record, name)
        if saved != config[name]:
            raise ValueError(
                f"{path} was trained with {name} {saved}, this run has {config[name]}; give {name}={saved} to resume it"
            )
    if record.lora != (current := lora_record(config)):
        raise ValueError(
            f"{path} was trained with lora {record.lora}, this run has {current}; give lora=all_linear with the keys "
            "of stage.module.lora as they were, or leave lora out"
        )


def run_folder(config: DictConfig, resume: SavedCheckpoint | None) -> Path:
    """Return the folder that this run writes to: its old one if it resumes, else a new name. Creates nothing.

    Raises:
        FileExistsError: ``run_name`` names a finished run, or one that could be resumed.
    """
    if resume is not None and read_info(resume.path.parent.parent) is not None:
        return resume.path.parent.parent
    now = datetime.now()
    block = "" if config.stage.name in ("warmup", "pretrain") else f"-L{config.block_size}"
    name = config.run_name or f"{config.stage.name}{block}-{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}"
    folder = Path(config.outputs) / "runs" / name
    info = read_info(folder)
    if info is not None and info.status == "finished":
        raise FileExistsError(f"{folder} is a finished run; give another run_name, or remove it")
    if resumable_checkpoint(folder) is not None:
        raise FileExistsError(
            f"{folder} is an unfinished run with a checkpoint: resume it with resume=auto run_name={name}, give another run_name, "
            "or remove it"
        )
    return folder
