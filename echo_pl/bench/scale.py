"""Shards, gathered layers and traffic of FSDP2 on any cluster, by arithmetic.

:mod:`echo_pl.bench.step_trace` counts what a step allocates and computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from echo_pl.backbone.vlm import VLM
from echo_pl.bench.step_trace import Stage


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A cluster of GPUs and its links; by default H100 SXM with NVLink and 400 Gbit/s for each GPU."""

    gpus: int
    per_node: int = 8
    flops: float = 989e12
    """Operations per second of one GPU in bfloat16, by its data sheet."""
    utilisation: float = 0.4
    """Share of ``flops`` that a training step reaches: an assumption."""
    node_bandwidth: float = 450e9
    """Bytes per second in and out of a GPU inside a node."""
    network_bandwidth: float = 50e9
    """The same between nodes."""

    @property
    def bandwidth(self) -> float:
        """Bandwidth of the slowest link of a ring over all GPUs."""
        return self.node_bandwidth if self.gpus <= self.per_node else self.network_bandwidth


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """Numbers of parameters, by the parts that FSDP2 gathers together."""

    layer: int
    """One decoder layer."""
    layers: int
    root: int
    """Embedding, head and last norm, which stay gathered during a step."""
    tower: int
    tower_layers: int

    @property
    def language(self) -> int:
        """Parameters of the language model."""
        return self.layer * self.layers + self.root

    @property
    def total(self) -> int:
        """All parameters."""
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

    The peak is ``always`` and the largest of three moments: backward begins, backward ends, AdamW.
    """

    weights: float
    optimizer: float
    teacher: float
    """Stage 3 without stored trajectories."""
    gathered: float
    """As the backward begins: embedding, head, the current and the next layer in bfloat16; gradients of head and layer."""
    activations: float
    """Language model, at the same moment."""
    vision: float
    """Vision tower, at the same moment."""
    reduction: float
    """As the backward ends: shards of gradients; weights, gradients and float32 sums of embedding and head."""
    step: float
    """While AdamW steps: shards of gradients, and a square root of every second moment."""

    @property
    def always(self) -> float:
        """Shards that are always in memory."""
        return self.weights + self.optimizer + self.teacher

    @property
    def peak(self) -> float:
        """Memory of the worst moment."""
        return self.always + max(self.gathered + self.activations + self.vision, self.reduction, self.step)


def memory_per_gpu(
    parts: ModelParts, stage: Stage, gpus: int, activations: float, tower_activations: float, teacher: bool = True
) -> StepMemory:
    """Memory of a step on one GPU.

    Args:
        parts: sizes of the model.
        stage: the tower is trained in ``pretrain`` only; ``dcd`` has a frozen teacher.
        gpus: number of GPUs that share a model.
        activations: bytes of the language model, as traced in ``bf16-true`` without gradients.
        tower_activations: bytes of the vision tower.
        teacher: stage 3 holds its teacher; False: its trajectories are stored.
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
    """Bytes of one GPU while it decodes: shards and one whole model in bfloat16; the cache of a few studies is small."""
    return memory_per_gpu(parts, stage, gpus, 0.0, 0.0, teacher).always + 2 * parts.total


def traffic_per_step(parts: ModelParts, stage: Stage, gpus: int, runs_tower: bool = True) -> float:
    """Bytes that a GPU receives in a step: weights gathered for forward and backward, gradients scattered.

    ``runs_tower`` is False for stages 2 and 3 from stored features; a frozen tower has no backward.
    """
    trained = parts.total if stage == "pretrain" else parts.language
    passes = 2 if stage == "pretrain" else int(runs_tower)
    gathers = 2 * (2 * parts.layer * parts.layers + parts.root + passes * parts.tower)
    return (gathers + 4 * trained) * (gpus - 1) / gpus
