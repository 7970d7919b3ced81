"""Where a stage's models live: on one device, or sharded over all (FSDP2). Used by the stages by composition."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
from torch.distributed.fsdp import FSDPModule

from echo_pl.backbone.lora import has_lora, merged_for_a_while
from echo_pl.backbone.sharding import ShardPolicy, shard
from echo_pl.backbone.vlm import VLM

log = logging.getLogger(__name__)


def shard_if_needed(stage: L.LightningModule, vlm: VLM) -> VLM:
    """Compile a model that has its weights, if asked for, and shard it, if the trainer's strategy shards."""
    vlm.prepare_to_train()
    mesh = stage.device_mesh
    if mesh is None:
        return vlm
    policy: ShardPolicy = getattr(stage.trainer.strategy, "policy", None) or ShardPolicy()
    return shard(vlm, mesh["data_parallel"], policy)


@contextmanager
def merged_adapters(vlm: VLM) -> Iterator[None]:
    """A model for a while as it would be deployed, to time it: low-rank adapters are part of the weights."""
    if not has_lora(vlm):
        yield
        return
    if isinstance(vlm, FSDPModule):
        log.warning("a sharded model keeps its low-rank adapters beside its weights: its speed is not that of a merged one")
        yield
        return
    with merged_for_a_while(vlm):
        yield
