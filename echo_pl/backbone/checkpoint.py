"""Hand-over of weights from one stage to the next, and what a checkpoint says of itself.

Reads Lightning checkpoints as data only (``weights_only=True``: tensors and plain values, never code). Knows the weights' names;
nothing of stages.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echo_pl.backbone.factory import refuse_unmatched
from echo_pl.backbone.fingerprint import weights_fingerprint
from echo_pl.backbone.lora import LoraSettings, add_lora, merge_lora
from echo_pl.backbone.sharded_files import is_sharded_checkpoint, read_into, read_meta, stored_shapes
from echo_pl.backbone.vlm import VLM

RECORD_KEY = "echo_pl"
"""Under this key a checkpoint holds its :class:`StageRecord`."""
_PREFIX = "vlm."
_TOWER = _PREFIX + "network.model.visual."


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """Where a checkpoint comes from; plain values, so that it can be read without running code."""

    stage: str
    backbone: str
    block_size: int | None = None
    """None before stage 2."""
    grid: str = "response"
    context_attention: str = "causal"
    data_fingerprint: str = ""
    vocabulary: str = ""
    """Fingerprint of the tokenizer's vocabulary: what the token ids mean."""
    start: str | None = None
    """The checkpoint it started from."""
    start_stage: str | None = None
    """Its stage; None where nobody has said it."""
    start_block_size: int | None = None
    """Its block size, where that is another than this one's: blocks that grow from run to run."""
    distillation_round: int | None = None
    """1 for a student of a stage-2 teacher, 2 for a student of that student, and so on; None before stage 3."""
    chain: str = ""
    """Name that the stages of one chain share."""
    mlflow_run_id: str | None = None
    geometry: dict[str, int] | None = None
    """:attr:`echo_pl.backbone.vlm.VLM.geometry` of the model; None where nobody has said it."""
    lora: dict[str, Any] | None = None
    """Settings of the low-rank adapters that it has beside the weights; None: there are none."""


def read_checkpoint(path: str | Path) -> tuple[StageRecord, dict[str, Any]]:
    """Load a checkpoint of this project into CPU memory; of one in a folder (FSDP2) all but the tensors.

    Returns:
        Its record and the checkpoint.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: the file is torn, or not a checkpoint of this project.
    """
    file = Path(path)
    sharded = is_sharded_checkpoint(file)
    if not is_checkpoint(file):
        raise FileNotFoundError(
            f"no checkpoint at {file}; give start=<checkpoint of the stage before> or resume=<checkpoint of this stage>"
        )
    try:
        content = read_meta(file) if sharded else torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file} cannot be read as a checkpoint (torn or foreign): {str(error).splitlines()[0]}") from error
    record = content.get(RECORD_KEY) if isinstance(content, dict) else None
    whole = isinstance(record, dict) and {"stage", "backbone"} <= record.keys() and (sharded or "state_dict" in content)
    if not whole or not isinstance(record, dict):
        raise ValueError(f"{file} is not a checkpoint of echo_pl: it has no {RECORD_KEY!r} record")
    known = {field.name for field in fields(StageRecord)}
    return StageRecord(**{name: value for name, value in record.items() if name in known}), content


def is_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint, a file or a folder, to be read."""
    return path.is_file() or is_sharded_checkpoint(path)


def load_weights(
    vlm: VLM,
    path: str | Path,
    expected_stages: tuple[str, ...],
    block_size: int | None = None,
    grid: str | None = None,
    context_attention: str | None = None,
) -> StageRecord:
    """Load the model of a checkpoint into ``vlm``: every weight, or an error. Low-rank adapters are added to the weights.

    Args:
        vlm: receives the weights, in place.
        path: a checkpoint written by a stage.
        expected_stages: stages it may come from.
        block_size: the block size it must have been trained with; None: any.
        grid: the block grid likewise.
        context_attention: likewise.

    Returns:
        The checkpoint's record.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a foreign checkpoint, another stage, another block layout, or weights that do not match.
    """
    record, content = read_checkpoint(path)
    refuse_other_stage(record, path, expected_stages, block_size, grid, context_attention)
    trained = {name: parameter.requires_grad for name, parameter in vlm.named_parameters()}
    make_fit(vlm, path, record, content)
    vlm.load_state_dict(_weights(vlm, path, content, _PREFIX))
    if record.lora is not None:
        merge_lora(vlm)
        for name, parameter in vlm.named_parameters():
            parameter.requires_grad_(trained[name])
    return record


def make_fit(vlm: VLM, path: str | Path, record: StageRecord, content: Mapping[str, Any]) -> None:
    """Give a model the adapters of a checkpoint, and refuse one whose weights then are others. Shapes alone: ``meta`` will do.

    Args:
        vlm: gets adapters, in place, if the checkpoint has some.
        path: of the checkpoint.
        record: of :func:`read_checkpoint`.
        content: likewise.

    Raises:
        ValueError: naming the first difference, or all of them in number.
    """
    refuse_other_geometry(record.geometry, vlm.geometry, str(path))
    if record.lora is not None:
        add_lora(vlm, LoraSettings(**record.lora))
    sharded = "state_dict" not in content
    stored = stored_shapes(Path(path)) if sharded else {name: value.shape for name, value in content["state_dict"].items()}
    shapes = {name.removeprefix(_PREFIX): shape for name, shape in stored.items() if name.startswith(_PREFIX)}
    own = vlm.state_dict()
    whose = f"{path} (a {record.backbone})"
    refuse_unmatched(own.keys() - shapes.keys(), shapes.keys() - own.keys(), whose)
    other = [name for name in own if own[name].shape != shapes[name]]
    if other:
        first = other[0]
        raise ValueError(
            f"{whose} does not fit the model: {len(other)} weights have other shapes, {first} is {tuple(shapes[first])} "
            f"there and {tuple(own[first].shape)} here; is it another backbone or another tokenizer?"
        )


def stored_vision_fingerprint(skeleton: VLM, path: str | Path, content: Mapping[str, Any]) -> str:
    """Of the vision tower that ``skeleton`` has with a checkpoint's weights.

    Args:
        skeleton: on any device, ``meta`` too; left as it is.
        path: of a checkpoint that fits it.
        content: of :func:`read_checkpoint`.
    """
    tower = copy.deepcopy(skeleton.network.model.visual).to_empty(device="cpu")
    tower.load_state_dict(_weights(tower, path, content, _TOWER))
    return weights_fingerprint(tower)


def _weights(module: nn.Module, path: str | Path, content: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The weights of a module, which have this prefix in a checkpoint."""
    own = module.state_dict()
    if "state_dict" in content:
        return {name: content["state_dict"][prefix + name] for name in own}
    weights = {name: torch.empty_like(value) for name, value in own.items()}
    read_into(Path(path), {prefix + name: value for name, value in weights.items()})
    return weights


def refuse_other_stage(
    record: StageRecord,
    path: str | Path,
    expected_stages: tuple[str, ...],
    block_size: int | None = None,
    grid: str | None = None,
    context_attention: str | None = None,
) -> None:
    """Raise ValueError when a checkpoint is of another stage or block layout than those of :func:`load_weights`."""
    if record.stage not in expected_stages:
        raise ValueError(
            f"{path} is a checkpoint of stage {record.stage!r}, needed is one of {' or '.join(map(repr, expected_stages))}; "
            "give start=<path>"
        )
    for name, wanted in (("block_size", block_size), ("grid", grid), ("context_attention", context_attention)):
        trained = getattr(record, name)
        if wanted is not None and trained != wanted:
            raise ValueError(
                f"{path} was trained with {name} {trained}, asked for is {wanted}; give {name}={trained}, or another start"
            )


def refuse_other_geometry(trained: Mapping[str, int] | None, own: Mapping[str, int], source: str) -> None:
    """Raise ValueError where weights were trained with another number of heads, or another patch size, than a model has.

    Args:
        trained: :attr:`StageRecord.geometry` of the weights.
        own: :attr:`echo_pl.backbone.vlm.VLM.geometry` of the model.
        source: whose weights they are, for the message.
    """
    for name, value in (trained or {}).items():
        if own.get(name, value) != value:
            raise ValueError(f"{source} was trained with {name} {value}, the model of this configuration has {own[name]}")


def record_dict(record: StageRecord, vlm: VLM | None = None) -> dict[str, Any]:
    """The record as plain values, for a checkpoint or a JSON file; with the model's geometry, where it is given."""
    return asdict(record if vlm is None else replace(record, geometry=vlm.geometry))
