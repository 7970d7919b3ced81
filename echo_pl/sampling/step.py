"""One denoising step, from token ids to committed tokens, as a function of tensors; eager or compiled as a whole.

The compiled step has fixed shapes (:class:`echo_pl.backbone.static_cache.StaticCache`), so that a decode uses one compiled graph
for its first block and one for the fused steps after it, until samples leave. Nothing in it looks at a number on the device.

Shapes: A active samples, L block size, Q queries, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from echo_pl.backbone.attention import QueryGroup
from echo_pl.backbone.static_cache import StaticCache
from echo_pl.backbone.text_decoder import TextDecoder
from echo_pl.backbone.vlm import VLM
from echo_pl.sampling.config import DecodeConfig, TokenChoice
from echo_pl.sampling.remasking import Prediction, choose_commits, predict

_KINDS_OF_STEPS = 128
Head = Callable[[Tensor], Tensor]
"""From hidden states to logits."""
TokenPath = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits (A, L, V), tokens so far and which positions are open to tokens (A, L)."""


class Step(NamedTuple):
    """A block after a step."""

    canvas_AL: Tensor
    open_AL: Tensor
    committed_AL: Tensor
    token_AL: Tensor
    logits_ALV: Tensor
    """-inf at ids that are never sampled."""

    @property
    def prediction(self) -> Prediction:
        """What the step predicted everywhere."""
        return Prediction(token_AL=self.token_AL, logits_ALV=self.logits_ALV)


def commit(
    logits_ALV: Tensor,
    canvas_AL: Tensor,
    open_AL: Tensor,
    order_AL: Tensor | None,
    never: Tensor,
    config: DecodeConfig,
    generator: torch.Generator | None,
    path: TokenPath | None = None,
) -> Step:
    """Choose tokens and the positions that take them.

    Args:
        logits_ALV: of a block.
        canvas_AL: its tokens so far.
        open_AL: which of them are still open.
        order_AL: scores for ``random`` remasking.
        never: ids that are never sampled.
        config: commit rule and choice of tokens.
        generator: for drawn tokens.
        path: chooses the tokens of a block together; which positions take theirs is left to what each would have taken alone.
    """
    prediction = predict(logits_ALV, never, config.token_choice, generator)
    committed_AL = choose_commits(prediction, open_AL, config, order_AL)
    if path is not None:
        prediction = replace(prediction, token_AL=path(prediction.logits_ALV, canvas_AL, open_AL))
    canvas_AL = torch.where(committed_AL, prediction.token_AL, canvas_AL)
    return Step(canvas_AL, open_AL & ~committed_AL, committed_AL, prediction.token_AL, prediction.logits_ALV)


def fixed_step(
    decoder: TextDecoder,
    head: Head,
    cache_: StaticCache,
    groups: tuple[QueryGroup, ...],
    ids_AQ: Tensor,
    first_A: Tensor,
    canvas_AL: Tensor,
    open_AL: Tensor,
    order_AL: Tensor | None,
    never: Tensor,
    config: DecodeConfig,
) -> Step:
    """Embed, layers, head, commit."""
    logits_ALV = head(decoder(ids_AQ, first_A, cache_, groups, canvas_AL.shape[1]))
    return commit(logits_ALV, canvas_AL, open_AL, order_AL, never, config, None)


def fixed_write(decoder: TextDecoder, cache_: StaticCache, groups: tuple[QueryGroup, ...], ids_AL: Tensor, first_A: Tensor) -> None:
    """Keys and values of a finished block, and nothing else."""
    decoder(ids_AL, first_A, cache_, groups, 0)


def fixed_token(
    decoder: TextDecoder,
    head: Head,
    cache_: StaticCache,
    groups: tuple[QueryGroup, ...],
    token_A1: Tensor,
    first_A: Tensor,
    never: Tensor,
    choice: TokenChoice,
) -> tuple[Tensor, Tensor]:
    """An autoregressive step: the next token and its logits."""
    prediction = predict(head(decoder(token_A1, first_A, cache_, groups, 1)), never, choice, None)
    return prediction.token_AL, prediction.logits_ALV


@cache
def compiled(function: Any) -> Any:
    """The function as one graph; compiled at its first call, once more for every kind of step and for shapes that vary."""
    # A step is one function for every block size, rule and batch of a process, more than torch's limit of 8 foresees.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _KINDS_OF_STEPS)
    return torch.compile(function, fullgraph=True)


def static_parts(vlm: VLM) -> tuple[TextDecoder, Head]:
    """What a compiled step is made of.

    Raises:
        ValueError: the model must stay the stock class, or its attention takes no bias.
    """
    decoder = vlm.text_decoder()
    if decoder is None:
        raise ValueError("decode.compile needs a frozen, dense model outside autocast; decode with compile=false")
    if vlm.decode_attention not in ("sdpa", "split"):
        raise ValueError(f"decode.compile needs decode_attention sdpa or split, got {vlm.decode_attention!r}")
    if vlm.pack_weights:
        raise ValueError("decode.compile needs pack_weights=false: torch.compile traces no packed weights")
    return decoder, decoder.head
