"""The checkpoint of the stage before: the newest run that fits, or a given path, and the options that unusual starts require."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from echo_pl.backbone.checkpoint import check_stage, is_checkpoint
from echo_pl.config.keys import target, with_values
from echo_pl.io.run_folders import FINAL, newest
from echo_pl.runs.lineage import SavedCheckpoint, backbone_name, data_name

log = logging.getLogger(__name__)

BEFORE: dict[str, tuple[str, ...]] = {"warmup": (), "pretrain": ("warmup",), "rad": ("pretrain",), "dcd": ("rad",)}
"""The stage whose checkpoint a stage starts from."""
REPEATABLE = ("pretrain", "rad", "dcd")
"""Stages that may also start from themselves, with ``start_stage``: longer, with larger blocks, or with the student as teacher."""


def read_start(config: DictConfig) -> SavedCheckpoint | None:
    """Find, read and check the checkpoint that a new run starts from.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, or belongs to another stage or block layout.
    """
    stage = config.stage.name
    if config.start is None or not BEFORE[stage]:
        return None
    if config.start != "auto":
        path = Path(config.start)
    elif stage == "pretrain" and not config.backbone.needs_warmup:
        return None
    else:
        path = find_start(config)
    start = SavedCheckpoint.read(path)
    check_start(config, start)
    return start


def read_start_of_resumed(config: DictConfig, resume: SavedCheckpoint) -> SavedCheckpoint | None:
    """Read and check the start that a resumed run recorded, or its new place given as ``start=<path>``.

    Only a teacher is needed again, to train; other stages have all weights in ``resume`` itself.

    Raises:
        FileNotFoundError: stage 3's teacher does not exist.
        ValueError: the start does not fit.
    """
    record = resume.record
    if config.start not in (None, "auto"):
        path = Path(config.start)
    elif record.start is None:
        return None
    else:
        path = Path(record.start)
        if not is_checkpoint(path):
            if record.stage == "dcd" and config.task == "fit":
                raise FileNotFoundError(f"{resume.path} has its teacher at {path}, which is gone; give start=<checkpoint>")
            log.warning("%s started from %s, which is gone; it is not needed here", resume.path, path)
            return None
    if not BEFORE[config.stage.name]:
        return None
    start = SavedCheckpoint.read(path)
    options = {"start_stage": record.start_stage, "start_block_size": record.start_block_size}  # need not be given again
    check_start(with_values(config, options), start)
    return start


def check_start(config: DictConfig, start: SavedCheckpoint) -> None:
    """Check stage and block layout of a start before there is a run folder; loading the weights would fail much later.

    Raises:
        ValueError: naming the difference and the option that allows it, if any.
    """
    require_explicit_option(config, start)
    layout = start_layout(config) if config.stage.name == "dcd" else ()
    check_stage(start.record, start.path, start_stages(config), *layout)


def start_stages(config: DictConfig) -> tuple[str, ...]:
    """Return the stages that this run may start from: the usual ones, or the one that ``start_stage`` names.

    Raises:
        ValueError: this stage cannot start from ``start_stage``.
    """
    stage, usual = config.stage.name, tuple(target(config.stage.module).previous_stages)
    if config.start_stage is None:
        return usual
    possible = [*dict.fromkeys([*usual, *([stage] if stage in REPEATABLE else [])])]
    if config.start_stage not in possible:
        raise ValueError(f"stage {stage} starts from {' or '.join(possible) or 'nothing'}, got start_stage={config.start_stage}")
    return (str(config.start_stage),)


def start_layout(config: DictConfig) -> tuple[int, str, str]:
    """Block size, grid and context attention of the checkpoint that a diffusion stage starts from."""
    return config.start_block_size or config.block_size, config.grid, config.context_attention


def require_explicit_option(config: DictConfig, start: SavedCheckpoint) -> None:
    """Check that starts which may be a mistake are asked for by an option: other block sizes, or a student as teacher.

    Raises:
        ValueError: naming the option.
    """
    stage, wanted, path, record = config.stage.name, start_layout(config)[0], start.path, start.record
    if stage == record.stage == "dcd" and config.start_stage is None:
        raise ValueError(f"{path} is a checkpoint of stage 'dcd', a student: give start_stage=dcd to make it the next teacher")
    if config.start_block_size is not None and record.block_size is None:
        raise ValueError(
            f"{path} is a checkpoint of stage {record.stage!r}, which has no blocks to grow from: leave start_block_size out, or "
            "give start_stage=rad"
        )
    if stage in ("rad", "dcd") and record.block_size not in (None, wanted):
        saved = record.block_size
        raise ValueError(
            f"{path} was trained with block_size {saved}, this run has {wanted}; give block_size={saved}, or "
            f"start_block_size={saved} to grow blocks of {saved} to blocks of {config.block_size}"
        )


def find_start(config: DictConfig) -> Path:
    """Find the newest finished run of the stage before with the same backbone and data (and block size, for stage 3).

    Raises:
        FileNotFoundError: no such run; the message names the command that makes one.
    """
    stage, outputs = config.stage.name, Path(config.outputs)
    before = BEFORE[stage] if config.start_stage is None else start_stages(config)
    block_size = start_layout(config)[0] if before[0] in ("rad", "dcd") else None
    found = newest(outputs, before, backbone_name(config), data_name(config), block_size)
    if found is None:
        block = "" if block_size is None else f" block_size={block_size}"
        raise FileNotFoundError(
            f"stage {stage} starts from a finished run of stage {before[0]} on data {data_name(config)!r}, and there is "
            f"none under {outputs}/runs; run `echo-pl stage={before[0]}{block}` first, or give start=<checkpoint>"
        )
    folder, info = found
    log.info("starting from %s (stage %s, %s)", folder / "checkpoints" / FINAL, info.stage, info.time)
    return folder / "checkpoints" / FINAL
