"""Models to time: the stock class at a given size, with random weights, on which speed does not depend.

Shapes: B batch, P context.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from echo_pl.backbone.attention import AttentionBackend
from echo_pl.backbone.factory import TinyBackbone
from echo_pl.backbone.vlm import VLM
from echo_pl.bench.roofline import ModelShape
from echo_pl.structs import Batch, SpecialTokens

DTYPES = ("float32", "bfloat16", "float16")
_TOKENS_IN_USE = 3
NEVER_ENDS = -1
"""Instead of an eos id: no report ends, so that every method writes the same number of tokens."""


@dataclass(kw_only=True)  # not frozen: OmegaConf takes it as the schema of the YAML's sizes
class BenchModel:
    """Sizes of a language model; its vision tower is small and idle, as contexts are text."""

    width: int
    layers: int
    heads: int
    key_heads: int
    mlp_width: int
    vocabulary: int
    dtype: str
    pack_weights: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {DTYPES}, got {self.dtype!r}")
        if self.vocabulary <= _TOKENS_IN_USE:
            raise ValueError(f"vocabulary must be more than {_TOKENS_IN_USE}, got {self.vocabulary}")

    @property
    def special(self) -> SpecialTokens:
        """The last three ids: pad, mask, image."""
        pad, mask, image = range(self.vocabulary - _TOKENS_IN_USE, self.vocabulary)
        return SpecialTokens(pad=pad, eos=NEVER_ENDS, mask=mask, image=image, never_sampled=(pad, mask, image))

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of weights and activations."""
        return getattr(torch, self.dtype)

    @property
    def shape(self) -> ModelShape:
        """Sizes for the roofline."""
        return ModelShape(
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            key_heads=self.key_heads,
            head_size=self.width // self.heads,
            mlp_width=self.mlp_width,
            vocabulary=self.vocabulary,
            bytes_per_weight=self.torch_dtype.itemsize,
        )

    def build(self, device: torch.device, attention: AttentionBackend) -> VLM:
        """Build a frozen model to decode with."""
        return self.trainable(attention).to(device, self.torch_dtype).eval().requires_grad_(False)

    def trainable(self, attention: AttentionBackend) -> VLM:
        """Build a model of float32 weights that trains and decodes with this attention backend."""
        factory = TinyBackbone(
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            key_heads=self.key_heads,
            mlp_width=self.mlp_width,
            train_attention=attention,
            decode_attention=attention,
            pack_weights=self.pack_weights,
        )
        with_eos = replace(self.special, eos=0)  # the library's configuration wants one in the vocabulary
        return factory.build(with_eos, self.vocabulary)


def text_prompts(batch_size: int, context: int, vocabulary: int, device: torch.device) -> Batch:
    """Random contexts of equal length, without images."""
    generator = torch.Generator().manual_seed(context)
    ids = torch.randint(0, vocabulary - _TOKENS_IN_USE, (batch_size, context), generator=generator)
    one = torch.ones(batch_size, 1, dtype=torch.long)
    batch = Batch(
        keys=tuple(f"prompt-{row}" for row in range(batch_size)),
        context_ids_BP=ids,
        context_lengths_B=torch.full((batch_size,), context),
        response_ids_BR=one,
        response_lengths_B=one[:, 0],
        pixel_values=torch.zeros(0, 3 * 2 * 8 * 8),
        image_grid_thw=torch.zeros(0, 3, dtype=torch.long),
    )
    return batch.to(device)
