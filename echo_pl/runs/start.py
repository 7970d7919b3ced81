"""Which checkpoint of the stage before a run starts from: the newest that fits, or the one that is given; what must be asked for.

Knows the configuration and run folders; builds no model.
"""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from echo_pl.backbone.checkpoint import StageRecord, is_checkpoint, read_checkpoint, refuse_other_stage
from echo_pl.config.keys import target
from echo_pl.io.run_folders import FINAL, newest
from echo_pl.runs.lineage import backbone_name, data_name
from echo_pl.runs.resume import refuse_other_layout

log = logging.getLogger(__name__)

BEFORE: dict[str, tuple[str, ...]] = {"warmup": (), "pretrain": ("warmup",), "rad": ("pretrain",), "dcd": ("rad",)}
"""The stage whose checkpoint a stage starts from."""
AGAIN = ("pretrain", "rad", "dcd")
"""Stages that may also start from themselves, with ``start_stage``: longer, with larger blocks, or with the student as teacher."""


def resolve_start(config: DictConfig, resume: Path | None) -> tuple[Path | None, StageRecord | None]:
    """The checkpoint of the stage before, and its record; says which one ``auto`` found.

    A resumed run keeps the start it had, unless ``start=<path>`` says where that checkpoint is now.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, belongs to another stage or block layout, or ``resume`` does.
    """
    stage = config.stage.name
    given = config.start is not None and config.start != "auto"
    if resume is not None:
        record, _ = read_checkpoint(resume)
        if record.stage != stage:
            raise ValueError(f"{resume} is a checkpoint of stage {record.stage!r}; it cannot resume stage {stage!r}")
        refuse_other_layout(config, record, resume)
        if not given:
            return kept_start(record, resume, config.task)
        config = as_it_began(config, record)
    if config.start is None or not BEFORE[stage]:
        return None, None
    if given:
        path = Path(config.start)
    elif stage == "pretrain" and not config.backbone.needs_warmup:
        return None, None
    else:
        path = find_start(config)
    record = read_checkpoint(path)[0]
    # Said here, before there is a run folder; the stage would say it when it loads the weights.
    refuse_unasked(config, record, path)
    layout = start_layout(config) if stage == "dcd" else ()
    refuse_other_stage(record, path, start_stages(config), *layout)
    return path, record


def start_stages(config: DictConfig) -> tuple[str, ...]:
    """Stages that this run may start from: those of its stage, or the one that ``start_stage`` names.

    Raises:
        ValueError: ``start_stage`` is none that this stage could start from.
    """
    stage, usual = config.stage.name, tuple(target(config.stage.module).previous_stages)
    if config.start_stage is None:
        return usual
    possible = [*dict.fromkeys([*usual, *([stage] if stage in AGAIN else [])])]
    if config.start_stage not in possible:
        raise ValueError(f"stage {stage} starts from {' or '.join(possible) or 'nothing'}, got start_stage={config.start_stage}")
    return (str(config.start_stage),)


def start_layout(config: DictConfig) -> tuple[int, str, str]:
    """Block size, grid and context attention of what a diffusion stage starts from."""
    return config.start_block_size or config.block_size, config.grid, config.context_attention


def refuse_unasked(config: DictConfig, record: StageRecord, path: Path) -> None:
    """Refuse what may be meant and may be a mistake, naming the option that allows it: other blocks, or a student as teacher.

    Raises:
        ValueError: the start has another block size than asked for, or none; or is of stage 3 without ``start_stage=dcd``.
    """
    stage, wanted = config.stage.name, start_layout(config)[0]
    if stage == record.stage == "dcd" and config.start_stage is None:
        raise ValueError(f"{path} is a checkpoint of stage 'dcd', a student: give start_stage=dcd to make it the next teacher")
    if config.start_block_size is not None and record.block_size is None:
        raise ValueError(
            f"{path} is a checkpoint of stage {record.stage!r}, which has no blocks to grow from: leave start_block_size out, or "
            "give start_stage=rad"
        )
    if stage in ("rad", "dcd") and record.block_size not in (None, wanted):
        had = record.block_size
        raise ValueError(
            f"{path} was trained with block_size {had}, asked for is {wanted}; give block_size={had}, or start_block_size={had} to "
            f"go on from blocks of {had} to blocks of {config.block_size}"
        )


def as_it_began(config: DictConfig, resumed: StageRecord) -> DictConfig:
    """The configuration with the start that a resumed run was allowed; it need not be allowed twice."""
    changed = config.copy()
    changed.start_stage = resumed.start_stage
    changed.start_block_size = resumed.start_block_size
    return changed


def kept_start(record: StageRecord, resume: Path, task: str) -> tuple[Path | None, StageRecord | None]:
    """The start of a resumed run. Only a teacher is needed again, to train; other stages have all weights in ``resume`` itself.

    Raises:
        FileNotFoundError: stage 3's teacher is gone.
    """
    if record.start is None:
        return None, None
    path = Path(record.start)
    if is_checkpoint(path):
        return path, read_checkpoint(path)[0]
    if record.stage == "dcd" and task == "fit":
        raise FileNotFoundError(f"{resume} has its teacher at {path}, which is gone; say where it is now: start=<checkpoint>")
    log.warning("%s started from %s, which is gone; it is not needed here", resume, path)
    return None, None


def find_start(config: DictConfig) -> Path:
    """Newest finished run of the stage before with the same backbone and data (and block size, for stage 3).

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
