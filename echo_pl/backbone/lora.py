"""Low-rank adapters on the language model (LoRA, arXiv 2106.09685), by the peft library, an extra of this package.

A stage trains the adapters and the embedding of the mask token, which no pretrained model has. A checkpoint holds base and
adapters; loading it without adapters merges them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from echo_pl.backbone.vlm import VLM

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Settings of the adapters."""

    rank: int = 16
    alpha: int = 32
    """An adapter's output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = get_args(Projection)
    """Projections of every decoder layer."""
    mask_embedding: bool = True
    """Also train the embedding of the mask token."""
    seed: int = 0
    """Seed of the adapters' initial weights; their output is zero at first in any case."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # a list if it comes from YAML or a checkpoint
        unknown = sorted(set(self.targets) - set(get_args(Projection)))
        if unknown or not self.targets:
            raise ValueError(f"lora.targets must be some of {', '.join(get_args(Projection))}; got {', '.join(unknown) or 'none'}")
        if self.rank < 1 or self.alpha < 1:
            raise ValueError(f"lora.rank and lora.alpha must be positive, got {self.rank} and {self.alpha}")

    @property
    def record(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self) | {"targets": list(self.targets)}


def require_peft() -> Any:
    """Import peft; raise ValueError if it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"low-rank adapters need the peft package ({error}): pip install 'echo-pl[lora]'") from error
    return peft


def add_lora(vlm: VLM, settings: LoraSettings) -> None:
    """Add adapters to the projections, in place, and freeze all other weights.

    They are float32 whatever the dtype of the weights (a trainer of precision bf16-true would make them bfloat16 again).

    Raises:
        ValueError: peft is not installed, or the model has adapters already.
    """
    network = vlm.network
    if has_lora(network):
        raise ValueError("the model has low-rank adapters already")
    vlm.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        add_adapters(network, settings)
    if settings.mask_embedding:
        row = network.model.language_model.embed_tokens.weight[vlm.special.mask]
        vlm.mask_embedding = nn.Parameter(row.detach().float().clone())
    vlm.modules_replaced()


def add_adapters(network: Any, settings: LoraSettings) -> None:
    """Add adapters to the stock class."""
    peft = require_peft()
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=list(settings.targets), lora_dropout=0.0, bias="none"
    )
    peft.inject_adapter_in_model(config, network.model.language_model)
    for parameter in network.model.language_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def has_lora(network: nn.Module) -> bool:
    """Return True if a network has adapters."""
    return any("lora_" in name for name, _ in network.named_parameters())


def merge_lora(vlm: VLM) -> None:
    """Merge the adapters into the weights, in place."""
    merge_adapters(vlm.network)
    vlm.modules_replaced()
    if vlm.mask_embedding is not None:
        embedding = vlm.network.model.language_model.embed_tokens.weight
        embedding.data[vlm.special.mask] = vlm.mask_embedding.data.to(embedding.dtype)
        vlm.mask_embedding = None


def merge_adapters(network: Any) -> None:
    """Merge the adapters of the stock class."""
    language_model = network.model.language_model
    for name, module in adapted_layers(network):
        language_model.set_submodule(name, summed(module))
    del language_model.peft_config


@contextmanager
def merged_lora(vlm: VLM) -> Iterator[None]:
    """Merge the adapters within the context, which needs a second copy of the adapted weights.

    Afterwards the model is restored bit for bit. Does nothing to a model without adapters.
    """
    language_model = vlm.network.model.language_model
    layers, tokens, mask_embedding = adapted_layers(vlm.network), language_model.embed_tokens, vlm.mask_embedding
    embedding = tokens.weight
    for name, module in layers:
        language_model.set_submodule(name, summed(module))
    if mask_embedding is not None:
        row = torch.tensor([vlm.special.mask], device=embedding.device)
        whole = embedding.detach().index_copy(0, row, mask_embedding.detach().to(embedding.dtype)[None])
        tokens.weight, vlm.mask_embedding = nn.Parameter(whole, requires_grad=False), None
    vlm.modules_replaced()
    try:
        yield
    finally:
        vlm.modules_replaced()
        for name, module in layers:
            language_model.set_submodule(name, module)
        tokens.weight, vlm.mask_embedding = embedding, mask_embedding


def adapted_layers(network: Any) -> list[tuple[str, Any]]:
    """Layers of the language model that have adapters, with their names."""
    if not has_lora(network):
        return []
    kind = require_peft().tuners.lora.LoraLayer
    return [(name, module) for name, module in network.model.language_model.named_modules() if isinstance(module, kind)]


@torch.no_grad()
def summed(module: Any) -> nn.Linear:
    """Plain layer with the sum of an adapted layer's weight and its adapters' products."""
    base: nn.Linear = module.get_base_layer()
    plain = copy.copy(base)
    plain._parameters = dict(base._parameters)
    weight = base.weight + sum(module.get_delta_weight(name) for name in module.active_adapters)
    plain.weight = nn.Parameter(weight.to(base.weight.dtype), requires_grad=False)
    return plain
