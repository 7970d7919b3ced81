"""Training on paper: shards, gathered layers and traffic of FSDP2 on any cluster, by arithmetic.

What a step allocates and computes is counted elsewhere: :mod:`echo_pl.bench.step_trace`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from echo_pl.backbone.vlm import VLM
from echo_pl.bench.step_trace import Stage


@dataclass(frozen=True, kw_only=True)
class Machine:
    """GPUs and what joins them."""

    gpus: int
    per_node: int = 8
    flops: float = 989e12
    """Of one GPU in bfloat16, by its data sheet (H100 SXM)."""
    utilisation: float = 0.4
    """Share of them that a training step reaches: an assumption."""
    node_bandwidth: float = 450e9
    """Bytes per second in and out of a GPU inside a node (NVLink)."""
    network_bandwidth: float = 50e9
    """The same between nodes (400 Gbit/s for each GPU)."""

    @property
    def bandwidth(self) -> float:
        """The slowest link of a ring over all GPUs."""
        return self.node_bandwidth if self.gpus <= self.per_node else self.network_bandwidth


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """Parameters, by what FSDP2 gathers together."""

    layer: int
    """One decoder layer."""
    layers: int
    root: int
    """What stays gathered during a step: embedding, head and last norm."""
    tower: int
    tower_layers: int

    @property
    def language(self) -> int:
        """Of the language model."""
        return self.layer * self.layers + self.root

    @property
    def total(self) -> int:
        """Of everything."""
        return self.language + self.tower


def parts_of(build: Callable[[], VLM]) -> ModelParts:
    """Count the parameters of a model on the meta device."""
    with torch.device("meta"):
        network = build().network
    count = [sum(p.numel() for p in layer.parameters()) for layer in network.model.language_model.layers]
    tower = sum(p.numel() for p in network.model.visual.parameters())
    everything = sum(p.numel() for p in network.parameters())
    return ModelParts(
        layer=max(count),
        layers=len(count),
        root=everything - tower - sum(count),
        tower=tower,
        tower_layers=len(network.model.visual.blocks),
    )


def memory_per_gpu(
    parts: ModelParts, stage: Stage, gpus: int, activations: float, tower_activations: float, teacher: bool = True
) -> dict[str, float]:
    """Bytes of one GPU in a step under FSDP2: float32 shards, bfloat16 layers, float32 sums of gradients.

    Args:
        parts: of the model.
        stage: the tower is trained in ``pretrain`` only; ``dcd`` has a frozen teacher.
        gpus: that share a model.
        activations: of the language model, as traced in ``bf16-true`` without gradients.
        tower_activations: of the tower.
        teacher: whether stage 3's teacher is there; False: its trajectories are stored.
    """
    trained = parts.total if stage == "pretrain" else parts.language
    gathered = 2 * (parts.root + 2 * parts.layer)  # the layer at work and the one fetched ahead
    gradients = (2 + 4) * (parts.root + parts.layer)  # whole, before they are summed and scattered
    return {
        "weights": 4 * parts.total / gpus,
        "gradients": 4 * trained / gpus,
        "optimizer": 8 * trained / gpus,
        "teacher": 4 * parts.total / gpus if stage == "dcd" and teacher else 0.0,
        "gathered": float(gathered + gradients) if gpus > 1 else 2.0 * parts.total,
        "activations": activations,
        "vision": tower_activations,
    }


def decoding_memory(parts: ModelParts, stage: Stage, gpus: int, teacher: bool = True) -> float:
    """Bytes of one GPU while a validation or a collection of trajectories decodes: shards, and one whole model in bfloat16.

    Without gradients and activations; the cache of a few studies is small beside it.
    """
    shards = memory_per_gpu(parts, stage, gpus, 0.0, 0.0, teacher)
    return shards["weights"] + shards["optimizer"] + shards["teacher"] + 2 * parts.total


def traffic_per_step(parts: ModelParts, stage: Stage, gpus: int, runs_tower: bool = True) -> float:
    """Bytes that a GPU receives in a step: weights gathered for forward and backward, gradients scattered.

    Args:
        parts: of the model.
        stage: a frozen tower has no backward.
        gpus: that share a model.
        runs_tower: False: stages 2 and 3 from stored features.
    """
    trained = parts.total if stage == "pretrain" else parts.language
    passes = 2 if stage == "pretrain" else int(runs_tower)
    gathers = 2 * (2 * parts.layer * parts.layers + parts.root + passes * parts.tower)
    return (gathers + 4 * trained) * (gpus - 1) / gpus
