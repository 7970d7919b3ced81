"""Stages on several ranks: sharded models (FSDP2), and losses over the batch of all ranks.

A rank divides its loss by the counts of all ranks. DDP and FSDP2 average gradients over ranks, so the result is the gradient of the
whole batch: two ranks train what one rank trains on the samples of both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from echo_pl.backbone.lora import has_lora, merged_lora
from echo_pl.backbone.sharding import ShardPolicy, shard
from echo_pl.backbone.vlm import VLM

log = logging.getLogger(__name__)


def is_distributed() -> bool:
    """Return True if this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def all_reduce_mean(count: Tensor) -> Tensor:
    """Mean of a count over all ranks. Every rank must call it, in the same order as its other collectives."""
    if not is_distributed():
        return count
    total = count.detach().float().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def shard_if_needed(stage: L.LightningModule, vlm: VLM) -> VLM:
    """Compile a model that has its weights, if requested, and shard it, if the trainer's strategy shards."""
    vlm.prepare_to_train()
    mesh = stage.device_mesh
    if mesh is None:
        return vlm
    policy: ShardPolicy = getattr(stage.trainer.strategy, "policy", None) or ShardPolicy()
    return shard(vlm, mesh["data_parallel"], policy)


@contextmanager
def merged_adapters(vlm: VLM) -> Iterator[None]:
    """Merge low-rank adapters into the weights for a while, to time the model as in deployment."""
    if not has_lora(vlm):
        yield
        return
    if isinstance(vlm, FSDPModule):
        log.warning("a sharded model keeps its low-rank adapters beside its weights: its speed is not that of a merged one")
        yield
        return
    with merged_lora(vlm):
        yield
