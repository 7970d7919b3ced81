"""FSDP2 for a VLM: the sharded parts, their precision, and whole weights for decoding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from echo_pl.backbone.vlm import VLM


@dataclass(frozen=True, kw_only=True)
class ShardPolicy:
    """Options of ``fully_shard``."""

    param_dtype: str | None = None
    """Dtype of a layer's computation; None: that of the weights, or of autocast."""
    reduce_dtype: str | None = None
    """Dtype in which gradients are summed over ranks; None: that of the computation."""
    reshard_after_forward: bool = True
    """Free a layer's whole weights after its forward, and gather them again for its backward."""

    def __post_init__(self) -> None:
        for name in ("param_dtype", "reduce_dtype"):
            value = getattr(self, name)
            if value not in (None, "float32", "bfloat16", "float16"):
                raise ValueError(f"{name} must be null, float32, bfloat16 or float16, got {value!r}")


def shard(vlm: VLM, mesh: DeviceMesh, policy: ShardPolicy) -> VLM:
    """Shard a model in place: every decoder layer and every vision block by itself, the rest together.

    A part moves to its device when it is sharded, so that no device holds the whole model.
    """
    vlm.whole_vision_fingerprint = vlm.vision_fingerprint  # None if the tower is trained
    dtypes = {name: getattr(torch, value) for name in ("param_dtype", "reduce_dtype") if (value := getattr(policy, name))}
    # Inputs are not cast: token ids and rules must not be, and all else is computed from weights in param_dtype.
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False)}
    for part in (*vlm.network.model.language_model.layers, *vlm.network.model.visual.blocks):
        fully_shard(part, reshard_after_forward=policy.reshard_after_forward, **options)
    # The head's weights are needed again as soon as the backward begins.
    fully_shard(vlm, reshard_after_forward=False, **options)
    vlm.reshard_after_forward = policy.reshard_after_forward
    return vlm


@contextmanager
def whole_weights(vlm: VLM) -> Iterator[None]:
    """Gather all weights of a sharded model on every rank within the context; does nothing to a model that is not sharded.

    Ranks decode with different numbers of forwards. Gathering weights in each forward would deadlock, so it is done once.
    """
    if not isinstance(vlm, FSDPModule):
        yield
        return
    parts = [module for module in vlm.modules() if isinstance(module, FSDPModule)]
    try:
        vlm.set_reshard_after_forward(False)
        for part in parts:
            part.unshard()
        yield
    finally:
        _reshard_layers(vlm, vlm.reshard_after_forward)
        for part in parts:
            part.reshard()


def _reshard_layers(vlm: VLM, after_forward: bool) -> None:
    for part in vlm.modules():
        if isinstance(part, FSDPModule) and part is not vlm:
            part.set_reshard_after_forward(after_forward, recurse=False)
