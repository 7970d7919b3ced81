"""Forwards of block decoding as compiled functions of fixed shapes: ``decode.compile=true``.

A decode uses one compiled graph for its first block and one for the fused steps after it, until samples leave the batch. No
compiled function reads a value on the device.

Shapes: A active samples, L block size, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from echo_pl.backbone.attention import QueryGroup
from echo_pl.backbone.static_cache import StaticCache
from echo_pl.backbone.text_decoder import TextDecoder
from echo_pl.backbone.vlm import VLM
from echo_pl.sampling.commit import BlockState, Commit, CommitRule, commit
from echo_pl.sampling.config import DecodeConfig, TokenChoice
from echo_pl.sampling.forwards import ForwardsOverCache, NfeCounter
from echo_pl.sampling.prefill import Prefill
from echo_pl.sampling.remasking import Prediction, predict

_STEP_VARIANTS = 128
Head = Callable[[Tensor], Tensor]
"""From hidden states to logits."""


class CompiledForwards(ForwardsOverCache):
    """The forwards of :class:`echo_pl.sampling.forwards.CachedForwards` over a cache of fixed shapes."""

    cache: StaticCache

    def __init__(self, vlm: VLM, start: Prefill, config: DecodeConfig, counter: NfeCounter) -> None:
        """Start after prefilled contexts.

        Raises:
            ValueError: the model cannot be compiled, see :func:`static_parts`.
        """
        super().__init__(start, config, counter)
        self._decoder, self._head = static_parts(vlm)
        self.cache = static_cache(self._decoder, start, config.block_size, vlm.dtype)

    def step(self, number: int, state: BlockState, working_rows: Tensor, rule: CommitRule) -> Commit:
        """Denoise and commit in one compiled function."""
        self.counter.count(working_rows)
        ids_AQ, first_A, n_kept = self._queries(number, state.block_ids_AL)
        groups = self.cache.groups(ids_AQ.shape[1])
        done: Commit = compiled(fixed_step)(self._decoder, self._head, self.cache, groups, ids_AQ, first_A, state, rule)
        self.cache.keep(n_kept)
        return done

    def _write(self, block_ids_AL: Tensor, first_A: Tensor) -> None:
        L = self.config.block_size
        compiled(fixed_write)(self._decoder, self.cache, self.cache.groups(L), block_ids_AL, first_A)
        self.cache.keep(L)


class CompiledTokenStep:
    """One autoregressive forward as a compiled function of fixed shapes."""

    def __init__(self, vlm: VLM, start: Prefill, never_sampled: Tensor, choice: TokenChoice) -> None:
        """Start after prefilled contexts; raise ValueError as :func:`static_parts` does."""
        self._decoder, self._head = static_parts(vlm)
        self.cache = static_cache(self._decoder, start, 1, vlm.dtype)
        self._never, self._choice = never_sampled, choice

    def __call__(self, token_A1: Tensor, position_A: Tensor) -> Prediction:
        """Predict the next token."""
        groups = self.cache.groups(1)
        token_A1, logits_A1V = compiled(fixed_token)(
            self._decoder, self._head, self.cache, groups, token_A1, position_A, self._never, self._choice
        )
        self.cache.keep(1)
        return Prediction(token_AL=token_A1, logits_ALV=logits_A1V)

    def keep_rows(self, kept_rows_A: Tensor) -> None:
        """Continue with these active samples only."""
        self.cache.keep_rows(kept_rows_A)


def static_cache(decoder: TextDecoder, start: Prefill, block_size: int, dtype: torch.dtype) -> StaticCache:
    """Cache of fixed shapes over the prefilled contexts, and the decoder prepared for its capacity."""
    static = StaticCache(start.cache, block_size, decoder.heads // decoder.key_heads, dtype)
    decoder.prepare(static.capacity)
    return static


def fixed_step(
    decoder: TextDecoder,
    head: Head,
    cache_: StaticCache,
    groups: tuple[QueryGroup, ...],
    ids_AQ: Tensor,
    first_A: Tensor,
    state: BlockState,
    rule: CommitRule,
) -> Commit:
    """Embed, layers, head, commit."""
    return commit(head(decoder(ids_AQ, first_A, cache_, groups, state.block_ids_AL.shape[1])), state, rule)


def fixed_write(decoder: TextDecoder, cache_: StaticCache, groups: tuple[QueryGroup, ...], ids_AL: Tensor, first_A: Tensor) -> None:
    """Write the keys and values of a finished block."""
    decoder(ids_AL, first_A, cache_, groups, 0)


def fixed_token(
    decoder: TextDecoder,
    head: Head,
    cache_: StaticCache,
    groups: tuple[QueryGroup, ...],
    token_A1: Tensor,
    first_A: Tensor,
    never_sampled: Tensor,
    choice: TokenChoice,
) -> tuple[Tensor, Tensor]:
    """Next token of an autoregressive step, and its logits."""
    prediction = predict(head(decoder(token_A1, first_A, cache_, groups, 1)), never_sampled, choice, None)
    return prediction.token_AL, prediction.logits_ALV


@cache
def compiled(function: Any) -> Any:
    """Return the function as one graph, compiled at its first call and again for each new kind of step or shape."""
    # One function serves every block size, rule and batch of a process, more variants than torch's limit of 8 allows.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _STEP_VARIANTS)
    return torch.compile(function, fullgraph=True)


def static_parts(vlm: VLM) -> tuple[TextDecoder, Head]:
    """Decoder and head of a compiled step.

    Raises:
        ValueError: the model must remain the stock class, or its attention takes no bias.
    """
    decoder = vlm.text_decoder()
    if decoder is None:
        raise ValueError("decode.compile needs a frozen, dense model outside autocast; decode with compile=false")
    if vlm.decode_attention not in ("sdpa", "split"):
        raise ValueError(f"decode.compile needs decode_attention sdpa or split, got {vlm.decode_attention!r}")
    if vlm.pack_weights:
        raise ValueError("decode.compile needs pack_weights=false: torch.compile traces no packed weights")
    return decoder, decoder.head
