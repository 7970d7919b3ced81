"""Records that pass between the packages: frozen dataclasses of tensors, without computation.

Shape suffixes, used in the whole package: B batch, P context length, R response length, N blocks, L block size,
V vocabulary, K noisy copies (or key positions after Q), Q query positions, H heads, D head size, E width, F findings.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Token ids that losses and samplers need."""

    pad: int
    eos: int
    mask: int
    image: int
    never_sampled: tuple[int, ...]
    """Ids that no decoder may emit and no target distribution may hold: pad, mask, image and other control tokens."""


@dataclass(frozen=True, kw_only=True)
class ReportText:
    """A report in its two fields, as in the official evaluation JSON."""

    findings: str
    impression: str


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images of a batch in the order of their placeholders, as pixels or as the output of a frozen vision tower."""

    pixel_values: Tensor
    """See :class:`Batch`; empty if there are features."""
    grid_thw: Tensor
    features: Tensor | None = None
    vision_fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.grid_thw)

    def chosen(self, numbers: Tensor) -> Images:
        """Select images by number, in this order."""
        if not len(self):
            return self
        patches = self.grid_thw.prod(-1)
        pixels, features = self.pixel_values, self.features
        if features is None:
            parts = pixels.split(patches.tolist())
            pixels = torch.cat([parts[i] for i in numbers.tolist()])
        elif len(self):
            per_token = int(patches.sum()) // len(features)
            parts = features.split((patches // per_token).tolist())
            features = torch.cat([parts[i] for i in numbers.tolist()])
        return replace(self, pixel_values=pixels, grid_thw=self.grid_thw[numbers], features=features)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One collated batch of studies, ready for a stage.

    Contexts and responses are padded on the right; a response's length includes its eos token. ``response_ids_BR`` is padded with
    the eos id (the eos fill of stage 2). :mod:`echo_pl.diffusion.sequence` divides it into whole blocks.
    """

    keys: tuple[str, ...]
    """Sample keys, unique in a corpus; they seed the noise and identify samples in messages."""
    context_ids_BP: Tensor
    context_lengths_B: Tensor
    response_ids_BR: Tensor
    response_lengths_B: Tensor
    pixel_values: Tensor
    """(patches of all images, channels * temporal * patch * patch), the layout of the Qwen2.5-VL image processor."""
    image_grid_thw: Tensor
    """(images, 3): patches in time, height and width, images in the order of their placeholders."""
    labels_BF: Tensor | None = None
    """Finding labels as 0/1 floats, if the corpus has them."""
    references: tuple[ReportText, ...] = ()
    """Reference reports as text, for batches whose decodes are scored."""
    image_features: Tensor | None = None
    """(image tokens of all images, E): output of a frozen vision tower, instead of ``pixel_values``."""
    vision_fingerprint: str | None = None
    """Fingerprint of the tower that computed ``image_features``."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def images(self) -> Images:
        """The images as a model's input."""
        return Images(
            pixel_values=self.pixel_values,
            grid_thw=self.image_grid_thw,
            features=self.image_features,
            vision_fingerprint=self.vision_fingerprint,
        )

    def to(self, device: torch.device | str, **kwargs: Any) -> Batch:
        """Return the batch with every tensor on ``device``."""
        moved: dict[str, Any] = {
            field.name: value.to(device, **kwargs)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; the DataLoader calls it."""
        pinned: dict[str, Any] = {f.name: v.pin_memory() for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **pinned)


@dataclass(frozen=True, kw_only=True)
class TopTargets:
    """Distributions by their K likeliest tokens; see :mod:`echo_pl.diffusion.top_targets`. M stands for any leading shape."""

    token_MK: Tensor
    """Ids, likeliest first."""
    probability_MK: Tensor
    tail_M: Tensor
    """Total probability of all other tokens."""

    def at(self, *index: Any) -> TopTargets:
        """Select positions of the leading shape."""
        return TopTargets(token_MK=self.token_MK[index], probability_MK=self.probability_MK[index], tail_M=self.tail_M[index])

    def to(self, device: torch.device | str) -> TopTargets:
        """Return the targets on a device."""
        return TopTargets(
            token_MK=self.token_MK.to(device), probability_MK=self.probability_MK.to(device), tail_M=self.tail_M.to(device)
        )


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One decode, position by position, counted from the first response token.

    See docs/explain/method.md, "Stage 3: Direct Conditional Distillation", phase 1. It covers whole
    blocks (R = N * L), up to and including the block of the first eos.
    """

    key: str
    block_size: int
    token_R: Tensor
    """Committed token of every position (pseudo-labels)."""
    commit_step_R: Tensor
    """Step within its block (from 1) that committed a position; 0: a forced token, not chosen by the teacher."""
    confidence_R: Tensor
    """Largest probability of the position at its commit step."""
    target_RV: Tensor | None = None
    """Stitched target: the whole distribution of each position *at its commit step*; None: not recorded."""
    top: TopTargets | None = None
    """Instead of ``target_RV``: the likeliest tokens of each of those distributions."""


@dataclass(frozen=True, kw_only=True)
class DecodeResult:
    """Result of a decode of a batch of contexts."""

    tokens: tuple[Tensor, ...]
    """Per sample: token ids before the first eos (eos not included), 1-D int64 on the CPU."""
    stopped_B: Tensor
    """bool: the sample ended with eos. False: it ended at the limit or in a repetition loop."""
    looped_B: Tensor
    """bool: stopped because of a repetition loop."""
    nfe_B: Tensor
    """int: forwards after prefill with this sample, KV writes included."""
    kv_write_nfe_B: Tensor
    """int: forwards of ``nfe_B`` that only wrote keys and values (vanilla block cache)."""
    written_B: Tensor
    """int: decoded positions, those after eos included (the count of published tables)."""
    forwards: int
    """Batched forwards after prefill; equals ``nfe_B`` at batch 1."""
    prefill_seconds: float
    decode_seconds: float
    """Wall time of everything after prefill, for the whole batch."""
    block_size: int
    """1 for autoregressive decoding."""

    @property
    def lengths_B(self) -> Tensor:
        """Tokens before eos, per sample."""
        return torch.tensor([len(tokens) for tokens in self.tokens])

    @property
    def blocks_B(self) -> Tensor:
        """Blocks begun, per sample. A context tail shortens the first one by less than a block."""
        return self.written_B.add(self.block_size - 1).div(self.block_size, rounding_mode="floor")
