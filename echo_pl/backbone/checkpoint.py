"""Record and weights of a checkpoint, and their hand-over from one stage to the next.

Lightning checkpoints are read as data only (``weights_only=True``: tensors and plain values, never code).
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

from echo_pl.backbone.factory import check_weight_names
from echo_pl.backbone.lora import LoraSettings, add_lora, merge_lora
from echo_pl.backbone.sharded_files import is_sharded_checkpoint, read_into, read_meta, stored_shapes
from echo_pl.backbone.vlm import VLM, weights_fingerprint

RECORD_KEY = "echo_pl"
"""Key of the :class:`StageRecord` in a checkpoint."""
_PREFIX = "vlm."
_TOWER = _PREFIX + "network.model.visual."


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """Origin of a checkpoint, as plain values that can be read without running code."""

    stage: str
    backbone: str
    block_size: int | None = None
    """None before stage 2."""
    grid: str = "response"
    context_attention: str = "causal"
    data_fingerprint: str = ""
    vocabulary: str = ""
    """Fingerprint of the tokenizer's vocabulary, which defines the token ids."""
    start: str | None = None
    """Checkpoint that training started from."""
    start_stage: str | None = None
    """Stage of ``start``; None if unknown."""
    start_block_size: int | None = None
    """Block size of ``start`` if it differs: blocks that grow from run to run."""
    distillation_round: int | None = None
    """1 for a student of a stage-2 teacher, 2 for a student of that student, and so on; None before stage 3."""
    chain: str = ""
    """Name shared by the stages of one chain."""
    mlflow_run_id: str | None = None
    geometry: dict[str, int] | None = None
    """:attr:`echo_pl.backbone.vlm.VLM.geometry` of the model; None if unknown."""
    lora: dict[str, Any] | None = None
    """Settings of the low-rank adapters beside the weights; None: without adapters."""


def read_checkpoint(path: str | Path) -> tuple[StageRecord, dict[str, Any]]:
    """Load the record and the content of a checkpoint into CPU memory; of a folder (FSDP2) all but the tensors.

    Raises:
        FileNotFoundError: ``path`` does not exist.
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
    """Return True if the path is a file or a sharded checkpoint."""
    return path.is_file() or is_sharded_checkpoint(path)


def load_weights(
    vlm: VLM,
    path: str | Path,
    expected_stages: tuple[str, ...],
    block_size: int | None = None,
    grid: str | None = None,
    context_attention: str | None = None,
) -> StageRecord:
    """Load every weight of a checkpoint into ``vlm``, with low-rank adapters merged; return its record.

    Args:
        vlm: model, changed in place.
        path: checkpoint written by a stage.
        expected_stages: stages that may have written it.
        block_size: block size of its training; None: any.
        grid: block grid of its training; None: any.
        context_attention: context attention of its training; None: any.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a checkpoint of this project, or its stage, block layout or weights do not match.
    """
    record, content = read_checkpoint(path)
    check_stage(record, path, expected_stages, block_size, grid, context_attention)
    trained = {name: parameter.requires_grad for name, parameter in vlm.named_parameters()}
    fit_to_checkpoint(vlm, path, record, content)
    vlm.load_state_dict(_weights(vlm, path, content, _PREFIX))
    if record.lora is not None:
        merge_lora(vlm)
        for name, parameter in vlm.named_parameters():
            parameter.requires_grad_(trained[name])
    return record


def fit_to_checkpoint(vlm: VLM, path: str | Path, record: StageRecord, content: Mapping[str, Any]) -> None:
    """Add the adapters of a checkpoint to a model, in place, and check that names and shapes of all weights match.

    ``record`` and ``content`` are those of :func:`read_checkpoint`. The model may be on ``meta``.

    Raises:
        ValueError: geometry, names or shapes differ.
    """
    check_geometry(record.geometry, vlm.geometry, str(path))
    if record.lora is not None:
        add_lora(vlm, LoraSettings(**record.lora))
    sharded = "state_dict" not in content
    stored = stored_shapes(Path(path)) if sharded else {name: value.shape for name, value in content["state_dict"].items()}
    shapes = {name.removeprefix(_PREFIX): shape for name, shape in stored.items() if name.startswith(_PREFIX)}
    own = vlm.state_dict()
    source = f"{path} (a {record.backbone})"
    check_weight_names(own.keys() - shapes.keys(), shapes.keys() - own.keys(), source)
    other = [name for name in own if own[name].shape != shapes[name]]
    if other:
        first = other[0]
        raise ValueError(
            f"{source} does not fit the model: {len(other)} weights have other shapes, {first} is {tuple(shapes[first])} "
            f"there and {tuple(own[first].shape)} here; is it another backbone or another tokenizer?"
        )


def stored_vision_fingerprint(skeleton: VLM, path: str | Path, content: Mapping[str, Any]) -> str:
    """Fingerprint of the vision tower in a checkpoint that fits ``skeleton``, which may be on ``meta`` and is not changed."""
    tower = copy.deepcopy(skeleton.network.model.visual).to_empty(device="cpu")
    tower.load_state_dict(_weights(tower, path, content, _TOWER))
    return weights_fingerprint(tower)


def _weights(module: nn.Module, path: str | Path, content: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Weights of a module, whose names have this prefix in a checkpoint."""
    own = module.state_dict()
    if "state_dict" in content:
        return {name: content["state_dict"][prefix + name] for name in own}
    weights = {name: torch.empty_like(value) for name, value in own.items()}
    read_into(Path(path), {prefix + name: value for name, value in weights.items()})
    return weights


def check_stage(
    record: StageRecord,
    path: str | Path,
    expected_stages: tuple[str, ...],
    block_size: int | None = None,
    grid: str | None = None,
    context_attention: str | None = None,
) -> None:
    """Raise ValueError if stage or block layout differ from the arguments, which are those of :func:`load_weights`."""
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


def check_geometry(trained: Mapping[str, int] | None, own: Mapping[str, int], source: str) -> None:
    """Raise ValueError if weights were trained with other numbers of heads or another patch size than a model has.

    ``trained`` is :attr:`StageRecord.geometry`, ``own`` that of the model, ``source`` the name of the weights in the message.
    """
    for name, value in (trained or {}).items():
        if own.get(name, value) != value:
            raise ValueError(f"{source} was trained with {name} {value}, the model of this configuration has {own[name]}")


def record_dict(record: StageRecord, vlm: VLM | None = None) -> dict[str, Any]:
    """Record as plain values, with the geometry of a given model."""
    return asdict(record if vlm is None else replace(record, geometry=vlm.geometry))
