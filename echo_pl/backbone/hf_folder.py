"""Weights of a checkpoint as a Hugging Face folder (safetensors and config), and of such a folder as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from echo_pl.backbone.checkpoint import RECORD_KEY, StageRecord, check_geometry, read_checkpoint, record_dict
from echo_pl.backbone.factory import BackboneFactory, PretrainedBackbone, TinyBackbone, check_weight_names
from echo_pl.backbone.lora import LoraSettings, add_adapters, merge_adapters
from echo_pl.backbone.sharded_files import is_sharded_checkpoint, read_weights
from echo_pl.backbone.vlm import geometry_of
from echo_pl.structs import SpecialTokens

_NETWORK = "vlm.network."
_EMBEDDING = "model.language_model.embed_tokens.weight"
_MASK_EMBEDDING = "mask_embedding"


def network_weights(path: Path) -> tuple[StageRecord, dict[str, Tensor]]:
    """Record and weights of a checkpoint, with the names of the stock class; adapters have those of peft.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: it is torn, or not a checkpoint of this project.
    """
    record, content = read_checkpoint(path)
    stored = read_weights(path) if is_sharded_checkpoint(path) else content["state_dict"]
    weights = {name.removeprefix(_NETWORK): value for name, value in stored.items() if name.startswith(_NETWORK)}
    if f"vlm.{_MASK_EMBEDDING}" in stored:
        weights[_MASK_EMBEDDING] = stored[f"vlm.{_MASK_EMBEDDING}"]
    if _EMBEDDING not in weights:
        raise ValueError(f"{path} is a checkpoint of stage {record.stage!r} without a language model")
    return record, weights


def network_config(factory: BackboneFactory, special: SpecialTokens, rows: int) -> Qwen2_5_VLConfig:
    """Configuration of the network that a factory builds, for a vocabulary of so many rows; loads no weights.

    Raises:
        ValueError: the factory has no Hugging Face configuration.
    """
    if isinstance(factory, TinyBackbone):
        return factory.config(special, rows)
    if isinstance(factory, PretrainedBackbone):
        config = Qwen2_5_VLConfig.from_pretrained(str(Path(factory.path).expanduser()))
        text: Any = config.text_config
        text.vocab_size = rows  # more, if the tokenizer has added tokens
        return config
    raise ValueError(f"there is no Hugging Face configuration for a {type(factory).__name__}")


def write_network(
    weights: Mapping[str, Tensor],
    factory: BackboneFactory,
    special: SpecialTokens,
    folder: Path,
    dtype: str | None = None,
    lora: LoraSettings | None = None,
    geometry: Mapping[str, int] | None = None,
) -> None:
    """Write ``config.json`` and safetensors that ``Qwen2_5_VLForConditionalGeneration.from_pretrained`` reads.

    Args:
        weights: result of :func:`network_weights`.
        factory: factory of the backbone.
        special: special ids of the tokenizer.
        folder: existing folder, whose files are replaced.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None: that of the weights.
        lora: settings of the adapters among the weights, which are merged.
        geometry: geometry of the weights, if known.

    Raises:
        ValueError: the weights do not fit the backbone.
    """
    weights = dict(weights)
    mask_row = weights.pop(_MASK_EMBEDDING, None)
    config = network_config(factory, special, len(weights[_EMBEDDING]))
    check_geometry(geometry, geometry_of(config), "the checkpoint")
    with torch.device("meta"):  # weights are assigned below: nothing is initialized or held twice
        network = Qwen2_5_VLForConditionalGeneration(config)
        if lora is not None:
            add_adapters(network, lora)
    own = network.state_dict()
    check_weight_names(own.keys() - weights.keys(), weights.keys() - own.keys(), "the checkpoint")
    other = [name for name in own if own[name].shape != weights[name].shape]
    if other:
        raise ValueError(
            f"the checkpoint does not fit the backbone: {other[0]} is {tuple(weights[other[0]].shape)} there and "
            f"{tuple(own[other[0]].shape)} in the configuration"
        )
    if mask_row is not None:
        weights[_EMBEDDING] = weights[_EMBEDDING].clone()
        weights[_EMBEDDING][special.mask] = mask_row.to(weights[_EMBEDDING].dtype)
    network.load_state_dict(weights, assign=True)
    if lora is not None:
        merge_adapters(network)
    if dtype is not None:
        for parameter in network.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    network.config.dtype = network.dtype
    network.save_pretrained(folder)


def check_model_folder(folder: Path) -> None:
    """Raise FileNotFoundError if a folder holds no model."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {folder}: it is not the folder of a Hugging Face model")


def folder_geometry(folder: Path) -> dict[str, int]:
    """See :func:`echo_pl.backbone.vlm.geometry_of`."""
    return geometry_of(Qwen2_5_VLConfig.from_pretrained(folder))


def read_network(folder: Path, dtype: str = "float32") -> dict[str, Tensor]:
    """Weights of a Hugging Face folder, with the names of the stock class.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: weights are missing or unexpected.
    """
    check_model_folder(folder)
    loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=getattr(torch, dtype), output_loading_info=True, local_files_only=True
    )
    network, info = loaded
    check_weight_names(info["missing_keys"], info["unexpected_keys"], str(folder))
    return dict(network.state_dict())


def as_checkpoint(weights: Mapping[str, Tensor], record: StageRecord, version: str) -> dict[str, Any]:
    """Checkpoint to start from, validate or decode, without an optimizer; Lightning migrates it by its ``version``."""
    return {
        "state_dict": {_NETWORK + name: value for name, value in weights.items()},
        RECORD_KEY: record_dict(record),
        "pytorch-lightning_version": version,
        "epoch": 0,
        "global_step": 0,
    }
