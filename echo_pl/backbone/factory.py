"""Factories of a VLM: random tiny weights, or a Hugging Face folder. A stage calls ``build`` inside ``configure_model``."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from echo_pl.backbone.attention import AttentionBackend
from echo_pl.backbone.vlm import VLM
from echo_pl.structs import SpecialTokens

log = logging.getLogger(__name__)


class BackboneFactory(Protocol):
    """Builder of the model once the tokenizer is known."""

    def build(self, special: SpecialTokens, vocab_size: int) -> VLM:
        """Return a model whose vocabulary holds every token of the tokenizer."""
        ...

    def skeleton(self, special: SpecialTokens, vocab_size: int) -> VLM:
        """Return the model on the ``meta`` device, without reading weights."""
        ...


def check_attention(**backends: str) -> None:
    """Raise ValueError for an unknown backend of an option."""
    for name, backend in backends.items():
        if backend not in get_args(AttentionBackend):
            raise ValueError(f"{name} must be one of {get_args(AttentionBackend)}, got {backend!r}")


@dataclass(frozen=True, kw_only=True)
class TinyBackbone:
    """Stock class with about 1.2 million random weights, so that a laptop runs the code path of the 7B."""

    width: int = 128
    layers: int = 4
    heads: int = 2
    key_heads: int = 1
    mlp_width: int = 384
    vision_width: int = 64
    vision_layers: int = 2
    vision_heads: int = 4
    vision_mlp_width: int = 128
    patch_size: int = 8
    """Pixels; a 64 x 64 image gives (64 / 8 / 2)^2 = 16 image tokens."""
    train_attention: AttentionBackend = "split"
    decode_attention: AttentionBackend = "split"
    pack_weights: bool = False
    gradient_checkpointing: bool = False
    compile_layers: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_attention(train_attention=self.train_attention, decode_attention=self.decode_attention)
        head_size, rest = divmod(self.width, self.heads)
        if rest or head_size % 16:
            raise ValueError(f"width / heads must be a multiple of 16, got {self.width} / {self.heads}")
        if self.heads % self.key_heads:
            raise ValueError(f"heads must be a multiple of key_heads, got {self.heads} and {self.key_heads}")

    def config(self, special: SpecialTokens, vocab_size: int) -> Qwen2_5_VLConfig:
        """Stock configuration of this size."""
        half = self.width // self.heads // 2
        return Qwen2_5_VLConfig(
            text_config={
                "vocab_size": vocab_size,
                "hidden_size": self.width,
                "intermediate_size": self.mlp_width,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.key_heads,
                "max_position_embeddings": 8192,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [half // 4, half * 3 // 8, half * 3 // 8],
                },
                "use_sliding_window": False,
                "bos_token_id": None,
                "eos_token_id": special.eos,
                "pad_token_id": None,
            },
            vision_config={
                "depth": self.vision_layers,
                "hidden_size": self.vision_width,
                "intermediate_size": self.vision_mlp_width,
                "num_heads": self.vision_heads,
                "out_hidden_size": self.width,
                "patch_size": self.patch_size,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": self.patch_size * 8,
                "fullatt_block_indexes": list(range(self.vision_layers)),
            },
            image_token_id=special.image,
            video_token_id=special.image,
            tie_word_embeddings=False,
        )

    def build(self, special: SpecialTokens, vocab_size: int) -> VLM:
        """Build random weights from ``seed`` alone; the caller's random state does not change."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = Qwen2_5_VLForConditionalGeneration(self.config(special, vocab_size))
        network = finish(network, vocab_size, self.gradient_checkpointing)
        return VLM(network, special, self.train_attention, self.decode_attention, self.pack_weights, self.compile_layers)

    def skeleton(self, special: SpecialTokens, vocab_size: int) -> VLM:
        """See :meth:`BackboneFactory.skeleton`."""
        with torch.device("meta"):
            return self.build(special, vocab_size)


@dataclass(frozen=True, kw_only=True)
class PretrainedBackbone:
    """Qwen2.5-VL weights (Lingshu-7B among them) from a folder, or from a hub id."""

    path: str
    dtype: str = "float32"
    """Dtype of the weights in memory: float32 to train (bfloat16 rounds steps of 1e-5 away), any to decode."""
    train_attention: AttentionBackend = "split"
    decode_attention: AttentionBackend = "split"
    pack_weights: bool = False
    gradient_checkpointing: bool = True
    compile_layers: bool = False

    def __post_init__(self) -> None:
        check_attention(train_attention=self.train_attention, decode_attention=self.decode_attention)
        if self.dtype not in ("bfloat16", "float16", "float32"):
            raise ValueError(f"dtype must be bfloat16, float16 or float32, got {self.dtype!r}")

    def build(self, special: SpecialTokens, vocab_size: int) -> VLM:
        """Load the weights.

        Raises:
            FileNotFoundError: a local path does not exist.
            ValueError: it is not a Qwen2.5-VL model, or weights are missing or unexpected.
        """
        path = self._resolved_path()
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            path, dtype=getattr(torch, self.dtype), output_loading_info=True
        )
        network, info = loaded
        check_weight_names(info["missing_keys"], info["unexpected_keys"], path)
        return self._finished(network, special, vocab_size)

    def skeleton(self, special: SpecialTokens, vocab_size: int) -> VLM:
        """See :meth:`BackboneFactory.skeleton`; reads the folder's configuration."""
        config = Qwen2_5_VLConfig.from_pretrained(self._resolved_path())
        with torch.device("meta"):
            network = Qwen2_5_VLForConditionalGeneration(config).to(getattr(torch, self.dtype))
            return self._finished(network, special, vocab_size)

    def _resolved_path(self) -> str:
        if self.path.startswith((".", "/", "~")) and not Path(self.path).expanduser().is_dir():
            raise FileNotFoundError(f"no model folder at {self.path}; give backbone.factory.path=<folder or hub id>")
        return str(Path(self.path).expanduser()) if self.path.startswith("~") else self.path

    def _finished(self, network: Qwen2_5_VLForConditionalGeneration, special: SpecialTokens, vocab_size: int) -> VLM:
        network = finish(network, vocab_size, self.gradient_checkpointing)
        return VLM(network, special, self.train_attention, self.decode_attention, self.pack_weights, self.compile_layers)


def check_weight_names(missing: Iterable[str], unexpected: Iterable[str], source: str) -> None:
    """Raise ValueError if weights are missing or unexpected."""
    missing_list, unexpected_list = sorted(missing), sorted(unexpected)
    if missing_list or unexpected_list:
        raise ValueError(
            f"{source} does not fit the model: {len(missing_list)} weights missing {missing_list[:3]}, "
            f"{len(unexpected_list)} without a place {unexpected_list[:3]}; is it another backbone or another size?"
        )


def finish(
    network: Qwen2_5_VLForConditionalGeneration, vocab_size: int, gradient_checkpointing: bool
) -> Qwen2_5_VLForConditionalGeneration:
    """Add rows for added tokens and enable gradient checkpointing."""
    embedding = network.model.language_model.embed_tokens
    rows, has_numbers = embedding.num_embeddings, not embedding.weight.is_meta
    if vocab_size > rows:
        if has_numbers:
            log.warning("vocabulary grows from %d to %d rows: the tokenizer has added tokens", rows, vocab_size)
        network.resize_token_embeddings(vocab_size, mean_resizing=has_numbers)
    if gradient_checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return network
