"""Where a stage's models live: on one device, or sharded over all (FSDP2). Used by the stages by composition."""

from __future__ import annotations

import lightning as L

from echo_pl.backbone.sharding import ShardPolicy, shard
from echo_pl.backbone.vlm import VLM


def placed(stage: L.LightningModule, vlm: VLM) -> VLM:
    """Shard a model that has its weights, if the trainer's strategy shards."""
    mesh = stage.device_mesh
    if mesh is None:
        return vlm
    policy: ShardPolicy = getattr(stage.trainer.strategy, "policy", None) or ShardPolicy()
    return shard(vlm.to(mesh.device_type), mesh["data_parallel"], policy)
