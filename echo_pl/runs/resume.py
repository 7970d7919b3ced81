"""Which checkpoint a run goes on from, and the folder that it writes to: never over another run's.

Knows the configuration and run folders; builds no model.
"""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig

from echo_pl.backbone.checkpoint import StageRecord, is_checkpoint, read_checkpoint
from echo_pl.backbone.sharded_files import is_sharded_checkpoint
from echo_pl.config.keys import target
from echo_pl.io.atomic import replace_path
from echo_pl.io.run_folders import LAST, PREVIOUS, left_behind, newest_unfinished, read_info
from echo_pl.runs.lineage import backbone_name, data_name, lora_record

log = logging.getLogger(__name__)


def resolve_resume(config: DictConfig) -> Path | None:
    """The checkpoint to continue from, if any.

    Raises:
        FileNotFoundError: ``resume=auto`` and no unfinished run of this stage (and of this ``run_name``) has a checkpoint.
        ValueError: ``resume=if_any`` without a ``run_name``; a sharded checkpoint for a trainer that does not shard.
    """
    if config.resume is None:
        return None
    if config.resume not in ("auto", "if_any"):
        return of_this_trainer(config, Path(config.resume))
    if config.resume == "if_any" and config.run_name is None:
        raise ValueError("resume=if_any goes on with the run of this name, or begins it: give run_name=<name>")
    outputs = Path(config.outputs)
    found = newest_unfinished(outputs, config.stage.name, backbone_name(config), data_name(config), config.run_name)
    if found is None and config.run_name is not None:
        refuse_other_run(config, outputs / "runs" / config.run_name)
        if config.resume == "if_any":
            return None
    if found is None:
        name = "" if config.run_name is None else f" and name {config.run_name!r}"
        raise FileNotFoundError(
            f"no unfinished run of stage {config.stage.name}{name} with a checkpoint under {outputs}/runs; "
            "give resume=<checkpoint>, or leave resume out to start anew"
        )
    found = of_this_trainer(config, whole_or_previous(found))
    log.info("resuming from %s", found)
    return found


def refuse_other_run(config: DictConfig, folder: Path) -> None:
    """Refuse to begin in a folder where another run has left a checkpoint: it would be lost.

    Raises:
        ValueError: the run there is of another stage, backbone or data, or its record cannot be read.
    """
    last = left_behind(folder)
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


def of_this_trainer(config: DictConfig, path: Path) -> Path:
    """Refuse a sharded checkpoint where the strategy cannot read it, and one with the optimizer states of a trainer that does not
    shard where it would give them to other weights.

    Raises:
        ValueError: with the way out.
    """
    if is_sharded_checkpoint(path) and not shards(config):
        raise ValueError(
            f"{path} is sharded, and this trainer does not shard: resume it with trainer=fsdp2, or make one file of it: "
            f"python -m echo_pl.runs.checkpoint_files merge {path} {path.with_suffix('.merged.ckpt')}"
        )
    if shards(config) and config.task == "fit" and path.is_file() and is_numbered_by_groups(path):
        raise ValueError(
            f"{path} was written by a trainer that does not shard, and this one does: resume it with trainer=cpu, gpu or ddp"
        )
    return path


def shards(config: DictConfig) -> bool:
    """Whether the trainer's strategy shares models out over ranks."""
    strategy = config.trainer.get("strategy")
    return isinstance(strategy, DictConfig) and issubclass(target(strategy), ModelParallelStrategy)


def is_numbered_by_groups(path: Path) -> bool:
    """Whether optimizer states are numbered group after group, as by all trainers but those that shard.

    These keep names, or number weights as the model has them.
    """
    for optimizer in read_checkpoint(path)[1].get("optimizer_states") or ():
        numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
        if numbers == list(range(len(numbers))):
            return True
    return False


def whole_or_previous(last: Path) -> Path:
    """The last checkpoint of a run, or with a warning the one before it where the last is torn.

    A torn one is moved aside, so that it does not become the one before the next.

    Raises:
        ValueError: it is torn, and there is none before it.
        FileNotFoundError: it is a folder without its list of files, and there is none before it.
    """
    try:
        read_checkpoint(last)
    except (ValueError, FileNotFoundError) as error:
        previous = last.with_name(PREVIOUS)
        if last.name != LAST or not is_checkpoint(previous):
            raise
        torn = last.with_name(LAST + ".torn")
        log.warning("%s; it is now %s, and the run goes on from the checkpoint before it, %s", error, torn, previous)
        replace_path(last, torn)
        return previous
    return last


def refuse_other_layout(config: DictConfig, record: StageRecord, resume: Path) -> None:
    """Raise ValueError when a diffusion run would go on with other blocks than it began with."""
    if record.block_size is None:
        return
    for name in ("block_size", "grid", "context_attention"):
        had = getattr(record, name)
        if had != config[name]:
            raise ValueError(f"{resume} was trained with {name} {had}, asked for is {config[name]}; give {name}={had} to resume it")
    if record.lora != (wanted := lora_record(config)):
        raise ValueError(
            f"{resume} was trained with lora {record.lora}, asked for is {wanted}; give lora=all_linear with the keys "
            "of stage.module.lora as they were, or leave lora out"
        )


def run_folder(config: DictConfig, resume: Path | None) -> Path:
    """Where this run will write: the old folder when it resumes a run, else a new name. Makes nothing.

    Raises:
        FileExistsError: ``run_name`` names a finished run, or one that could go on.
    """
    if resume is not None and read_info(resume.parent.parent) is not None:
        return resume.parent.parent
    now = datetime.now()
    block = "" if config.stage.name in ("warmup", "pretrain") else f"-L{config.block_size}"
    name = config.run_name or f"{config.stage.name}{block}-{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}"
    folder = Path(config.outputs) / "runs" / name
    info = read_info(folder)
    if info is not None and info.status == "finished":
        raise FileExistsError(f"{folder} is a finished run; give another run_name, or remove it")
    if left_behind(folder) is not None:
        raise FileExistsError(
            f"{folder} is an unfinished run with a checkpoint: go on with it, resume=auto run_name={name}, give another run_name, "
            "or remove it"
        )
    return folder
