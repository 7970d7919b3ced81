"""Which checkpoint a run starts from or resumes, where it writes, and what its own checkpoints will say of that.

Knows the configuration and run folders; builds no model.
"""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig

from echo_pl.backbone.checkpoint import StageRecord, is_checkpoint, read_checkpoint, refuse_other_stage
from echo_pl.backbone.lora import LoraSettings, require_peft
from echo_pl.backbone.sharded_files import is_sharded_checkpoint
from echo_pl.config_keys import build, target
from echo_pl.runs import FINAL, LAST, PREVIOUS, left_behind, newest, newest_unfinished, read_info, replace_path

log = logging.getLogger(__name__)

BEFORE: dict[str, tuple[str, ...]] = {"warmup": (), "pretrain": ("warmup",), "rad": ("pretrain",), "dcd": ("rad",)}
"""The stage whose checkpoint a stage starts from."""
AGAIN = ("pretrain", "rad", "dcd")
"""Stages that may also start from themselves, with ``start_stage``: longer, with larger blocks, or with the student as teacher."""


class DataIdentity(Protocol):
    """What of the data a checkpoint must be matched with."""

    @property
    def fingerprint(self) -> str:
        """Of corpus, vocabulary and processing."""

    @property
    def vocabulary_fingerprint(self) -> str:
        """Of what the token ids mean."""


def refuse_other_data(data: DataIdentity, resume: Path | None, start: Path | None, before: StageRecord | None) -> None:
    """Refuse weights that were trained on token ids of another meaning, and a resume on other data.

    Raises:
        ValueError: naming both fingerprints.
    """
    if resume is not None:
        had = read_checkpoint(resume)[0].data_fingerprint
        if had and had != data.fingerprint:  # an imported model says nothing of data
            raise ValueError(
                f"{resume} was trained on data with fingerprint {had}, this run has {data.fingerprint}; resume with the same "
                "corpus, tokenizer and processor settings, or start a new run with start="
            )
    if before is not None and before.vocabulary != data.vocabulary_fingerprint:
        raise ValueError(
            f"{start} was trained with vocabulary {before.vocabulary}, this run has {data.vocabulary_fingerprint}: its token ids "
            "mean other tokens; give data.tokenizer_path=<its tokenizer>, or another start="
        )


def backbone_name(config: DictConfig) -> str:
    """Class name of the backbone's factory: weights of one class may fit, those of another cannot."""
    return str(config.backbone.factory._target_).rsplit(".", 1)[-1]


def data_name(config: DictConfig) -> str:
    """Name of the corpus folder; of a mixture, those of its corpora."""
    return "+".join(map(str, config.data.corpora)) if config.data.get("corpora") else Path(config.data.root).name


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
            f"python -m echo_pl.tools.checkpoint merge {path} {path.with_suffix('.merged.ckpt')}"
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
        ValueError: the start has another block size than asked for, or is of stage 3 without ``start_stage=dcd``.
    """
    stage, wanted = config.stage.name, start_layout(config)[0]
    if stage == record.stage == "dcd" and config.start_stage is None:
        raise ValueError(f"{path} is a checkpoint of stage 'dcd', a student: give start_stage=dcd to make it the next teacher")
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


def lora_record(config: DictConfig) -> dict[str, Any] | None:
    """Settings of low-rank adapters as checkpoints keep them."""
    node = config.stage.module.get("lora")
    if node is None:
        return None
    settings: LoraSettings = build(node)
    require_peft()
    return settings.record


def adopt_lora(config: DictConfig, checkpoint: Path) -> None:
    """Look at a checkpoint with the adapters that it has, where the configuration says nothing of any."""
    had = read_checkpoint(checkpoint)[0].lora
    if had is not None and "lora" in config.stage.module and config.stage.module.lora is None:
        config.stage.module.lora = {"_target_": f"{LoraSettings.__module__}.{LoraSettings.__name__}", **had}


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


def make_lineage(
    config: DictConfig, data: DataIdentity, start: Path | None, chain: str, before: StageRecord | None = None
) -> StageRecord:
    """What every checkpoint of this run will say of itself; the MLflow run is added once it exists.

    Args:
        config: of the run.
        data: likewise.
        start: the checkpoint it starts from.
        chain: name that the stages of one chain share.
        before: what ``start`` says of itself.
    """
    other_blocks = before is not None and before.block_size not in (None, config.block_size)
    rounds = 0 if before is None else before.distillation_round or int(before.stage == "dcd")
    return StageRecord(
        stage=config.stage.name,
        backbone=backbone_name(config),
        block_size=config.block_size if config.stage.name in ("rad", "dcd") else None,
        grid=config.grid,
        context_attention=config.context_attention,
        data_fingerprint=data.fingerprint,
        start=None if start is None else str(start.resolve()),
        start_stage=None if before is None else before.stage,
        start_block_size=before.block_size if before is not None and other_blocks else None,
        distillation_round=rounds + 1 if config.stage.name == "dcd" else None,
        chain=chain,
        vocabulary=data.vocabulary_fingerprint,
        lora=lora_record(config),
    )
