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


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes of one GPU in a step under FSDP2: float32 shards, bfloat16 layers, float32 sums of gradients.

    What stands in ``always`` is there all the time; of the rest, what one of three moments needs.
    """

    weights: float
    optimizer: float
    teacher: float
    """Of stage 3, where its trajectories are not stored."""
    gathered: float
    """As the backward begins: embedding, head, the layer at work and the one fetched ahead in bfloat16; gradients of head and
    layer."""
    activations: float
    """At the same moment; of the language model."""
    vision: float
    """Of the tower, likewise."""
    reduction: float
    """As the backward ends: shards of gradients; weights, gradients and float32 sums of embedding and head."""
    step: float
    """While AdamW steps: shards of gradients, and a square root of every second moment."""

    @property
    def always(self) -> float:
        """Shards that are there all the time."""
        return self.weights + self.optimizer + self.teacher

    @property
    def peak(self) -> float:
        """Of the worst moment."""
        return self.always + max(self.gathered + self.activations + self.vision, self.reduction, self.step)


def memory_per_gpu(
    parts: ModelParts, stage: Stage, gpus: int, activations: float, tower_activations: float, teacher: bool = True
) -> StepMemory:
    """What a step needs.

    Args:
        parts: of the model.
        stage: the tower is trained in ``pretrain`` only; ``dcd`` has a frozen teacher.
        gpus: that share a model.
        activations: of the language model, as traced in ``bf16-true`` without gradients.
        tower_activations: of the tower.
        teacher: whether stage 3's teacher is there; False: its trajectories are stored.
    """
    trained = parts.total if stage == "pretrain" else parts.language
    head = parts.root / 2  # the other half is the embedding
    return StepMemory(
        weights=4 * parts.total / gpus,
        optimizer=8 * trained / gpus,
        teacher=4 * parts.total / gpus if stage == "dcd" and teacher else 0.0,
        gathered=2 * (parts.root + 2 * parts.layer) + 2 * head + (2 + 4) * parts.layer,
        activations=activations,
        vision=tower_activations,
        reduction=4 * trained / gpus + (2 + 2 + 4) * parts.root,
        step=(4 + 4) * trained / gpus,
    )


def decoding_memory(parts: ModelParts, stage: Stage, gpus: int, teacher: bool = True) -> float:
    """Bytes of one GPU while a validation or a collection of trajectories decodes: shards, and one whole model in bfloat16.

    Without gradients and activations; the cache of a few studies is small beside it.
    """
    return memory_per_gpu(parts, stage, gpus, 0.0, 0.0, teacher).always + 2 * parts.total


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
