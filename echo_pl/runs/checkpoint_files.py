"""Checkpoints as files: describe one, make one file of a sharded one, convert to a Hugging Face folder and back.

A merged checkpoint continues under any trainer (resume=). One from a Hugging Face folder is to start from (start=), to validate
or to decode. Everything is written under a temporary name and renamed.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import lightning
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from echo_pl.backbone.checkpoint import StageRecord, read_checkpoint
from echo_pl.backbone.hf_folder import (
    as_checkpoint,
    check_model_folder,
    folder_geometry,
    network_weights,
    read_network,
    write_network,
)
from echo_pl.backbone.lora import LoraSettings
from echo_pl.backbone.sharded_files import is_sharded_checkpoint, read_full_checkpoint, stored_shapes
from echo_pl.config.compose import compose_config
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.data.loading.tokenizer import load_tokenizer, vocabulary_fingerprint
from echo_pl.io.atomic import atomic_folder
from echo_pl.io.checkpoints import AtomicCheckpointIO
from echo_pl.runs.lineage import backbone_name

log = logging.getLogger(__name__)
RECORD_FILE = "echo_pl.json"
"""Beside an exported model: what its checkpoint said of itself, and how its prompts are made."""
DTYPES = ("float32", "bfloat16", "float16")


def describe(path: Path) -> dict[str, Any]:
    """Record, steps and sizes of a checkpoint, as plain values."""
    record, content = read_checkpoint(path)
    sharded = is_sharded_checkpoint(path)
    shapes = stored_shapes(path) if sharded else {name: value.shape for name, value in content["state_dict"].items()}
    files = path.rglob("*") if sharded else [path]
    return {
        **asdict(record),
        "format": "sharded (FSDP2)" if sharded else "one file",
        "global_step": content.get("global_step"),
        "epoch": content.get("epoch"),
        "parameters": sum(shape.numel() for shape in shapes.values()),
        "bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "can_resume": sharded or bool(content.get("optimizer_states")),
    }


def merge(folder: Path, out: Path) -> None:
    """Write a sharded checkpoint as one file, optimizer states and all.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: ``folder`` is no sharded checkpoint, or torn.
    """
    check_absent(out)
    read_checkpoint(folder)
    if not is_sharded_checkpoint(folder):
        raise ValueError(f"{folder} is one file already: there is nothing to merge")
    AtomicCheckpointIO().save_checkpoint(read_full_checkpoint(folder), out)


def to_hf(checkpoint: Path, out: Path, dtype: str | None = None, overrides: tuple[str, ...] = ()) -> None:
    """Write a Hugging Face folder: weights, config, tokenizer, image processor, and what the checkpoint says of itself.

    Args:
        checkpoint: of any stage.
        out: folder to make.
        dtype: of the weights; None: as they are.
        overrides: changes to the configuration of the run that wrote the checkpoint.

    Raises:
        FileExistsError: ``out`` exists.
        ValueError: the checkpoint and the backbone or tokenizer of the configuration do not belong together.
    """
    check_absent(out)
    record, weights = network_weights(checkpoint)
    config = configuration_of(checkpoint, record, overrides)
    name = backbone_name(config)
    if record.backbone != name:
        log.warning("%s says that its backbone is a %s, the configuration has %s", checkpoint, record.backbone, name)
    data: ReportDataModule = instantiate(config.data, _convert_="all")
    if record.vocabulary and record.vocabulary != data.vocabulary_fingerprint:
        raise ValueError(
            f"{checkpoint} was trained with vocabulary {record.vocabulary}, the tokenizer of the configuration has "
            f"{data.vocabulary_fingerprint}: give data.tokenizer_path=<its tokenizer>"
        )
    factory = instantiate(config.backbone.factory, _convert_="all")
    with atomic_folder(out) as folder:
        lora = None if record.lora is None else LoraSettings(**record.lora)
        write_network(weights, factory, data.special, folder, dtype, lora, record.geometry)
        data.processor.save(folder)
        about = {"record": asdict(replace(record, lora=None)), "prompt": asdict(data.processor_config)}
        (folder / RECORD_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def configuration_of(checkpoint: Path, record: StageRecord, overrides: tuple[str, ...]) -> DictConfig:
    """The configuration that stands in the run's folder; without one, that of the checkpoint's stage with overrides.

    Raises:
        ValueError: there is neither: sizes that the weights do not show (heads, patches, the prompt) would be guessed.
    """
    beside = checkpoint.resolve().parent.parent / "config.yaml"
    if not beside.is_file():
        if not overrides:
            raise ValueError(
                f"there is no {beside}, the configuration of the run that wrote {checkpoint}: put the checkpoint back into "
                "<run>/checkpoints, or say what it is with overrides: backbone=... data=..."
            )
        return compose_config([f"stage={record.stage}", *overrides])
    config = OmegaConf.load(beside)
    OmegaConf.set_struct(config, True)  # a misspelt key is an error
    changed = OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)))
    assert isinstance(changed, DictConfig)
    return changed


def from_hf(folder: Path, out: Path, dtype: str = "float32", **given: Any) -> StageRecord:
    """Write a checkpoint from a Hugging Face folder.

    Args:
        folder: one made by :func:`to_hf`, or any of a Qwen2.5-VL.
        out: file to make.
        dtype: of the weights in it.
        **given: fields of the record; they come before those in the folder.

    Returns:
        The record.

    Raises:
        FileExistsError: ``out`` exists.
        FileNotFoundError: no model or no tokenizer in the folder.
        ValueError: nothing says of which stage it is; weights that do not match.
    """
    check_absent(out)
    check_model_folder(folder)
    beside = folder / RECORD_FILE
    known = json.loads(beside.read_text(encoding="utf-8"))["record"] if beside.is_file() else {}
    names = {field.name for field in fields(StageRecord)}
    values = {name: value for name, value in known.items() if name in names}
    values |= {name: value for name, value in given.items() if value is not None}
    if "stage" not in values:
        raise ValueError(f"there is no {RECORD_FILE} in {folder}: say what the model is with --stage (and --block-size)")
    if values["stage"] in ("rad", "dcd") and values.get("block_size") is None:
        raise ValueError(f"a model of stage {values['stage']} has a block size: give --block-size")
    tokenizer, _ = load_tokenizer(folder)
    values.setdefault("backbone", "PretrainedBackbone")
    # Where it came from is not on this machine, and its run is not to be written to.
    record = replace(
        StageRecord(**values), vocabulary=vocabulary_fingerprint(tokenizer), geometry=folder_geometry(folder), start=None,
        mlflow_run_id=None,
    )  # fmt: skip
    AtomicCheckpointIO().save_checkpoint(as_checkpoint(read_network(folder, dtype), record, lightning.__version__), out)
    return record


def check_absent(out: Path) -> None:
    """Raise FileExistsError for a place that is taken."""
    if out.exists():
        raise FileExistsError(f"{out} exists; give another place, or remove it")
