"""Greedy ``generate`` of transformers on a VLM's weights: a baseline for our decoders, which never call it.

Shapes: B batch, R tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from echo_pl.backbone import attention
from echo_pl.backbone.vlm import VLM
from echo_pl.io.clock import now
from echo_pl.structs import Batch


class _FirstToken(StoppingCriteria):
    """Criterion that stops nothing and records the time of the first token."""

    def __init__(self) -> None:
        self.time: float | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.time is None:
            self.time = now(input_ids.device)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def stock_attention(vlm: VLM) -> Iterator[None]:
    """Use the library's own attention functions within the context."""
    vlm.network.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})
    try:
        yield
    finally:
        vlm.network.set_attn_implementation({"text_config": attention.NAME, "vision_config": "sdpa"})


@torch.no_grad()
def stock_generate(vlm: VLM, batch: Batch, tokens: int, suppress: bool = False) -> tuple[Tensor, float, float]:
    """Write exactly ``tokens`` tokens after every context, without an end.

    Args:
        vlm: model.
        batch: contexts of one length.
        tokens: number of tokens.
        suppress: leave out the ids that are never sampled, as our decoders do. The library then reads the whole vocabulary once
            more per token, so benchmarks do not set it.

    Returns:
        (B, R) token ids, seconds until the first token, and seconds from there to the end.

    Raises:
        ValueError: contexts of several lengths (the library pads on the left, our batches on the right).
    """
    ids = batch.context_ids_BP
    if bool((batch.context_lengths_B != ids.shape[1]).any()):
        raise ValueError("the library's generate takes contexts of one length here, got a padded batch")
    images: dict[str, Any] = {}
    if len(batch.image_grid_thw):
        images = {"pixel_values": batch.pixel_values, "image_grid_thw": batch.image_grid_thw}
    first = _FirstToken()
    with stock_attention(vlm):
        started = now(ids.device)
        network: Any = vlm.network  # the library's annotations of generate do not fit its own classes
        out = network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == vlm.special.image).int(),
            **images,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            suppress_tokens=list(vlm.special.never_sampled) if suppress else None,
            eos_token_id=None,
            pad_token_id=vlm.special.pad,
            stopping_criteria=StoppingCriteriaList([first]),
        )
        finished = now(ids.device)
    assert first.time is not None
    return out[:, ids.shape[1] :], first.time - started, finished - first.time
