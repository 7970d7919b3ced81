"""Attention function of the transformers layers, ``echo_attention``, which takes a rule instead of a mask tensor.

Backends, all of the same result: ``sdpa`` (dense mask, the reference), ``split`` (context and response apart, for a CPU or a GPU
without FlexAttention), ``flex`` (FlexAttention: compiled on a GPU; on a CPU eager and forward only), ``flash_attn`` (the package
of that name, on a GPU only).

Shapes: B batch, H query heads, G query heads per key head, Q/K positions, D head size, P context.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface

from echo_pl.backbone import flash_attention
from echo_pl.backbone.kv_cache import HiddenSlots, computing_dtype
from echo_pl.backbone.split_attention import merged_attention
from echo_pl.diffusion.block_mask import AttentionRule

AttentionBackend = Literal["sdpa", "split", "flex", "flash_attn"]
NAME = "echo_pl"
"""Name of the function in transformers' registry."""


@dataclass(frozen=True)
class QueryGroup:
    """Adjacent queries of a decode step that attend to the first ``keys`` cached keys, padding excepted."""

    queries: int
    keys: int


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """Argument that the transformers layers pass on instead of an attention mask."""

    rule: AttentionRule | None = None
    """Rule of a whole sequence or a prefill."""
    backend: AttentionBackend = "sdpa"
    groups: tuple[QueryGroup, ...] = ()
    """Query groups of a decode step instead of a rule."""
    padding: HiddenSlots | None = None
    """Hidden slots of the cache, with ``groups``."""

    def __post_init__(self) -> None:
        if self.backend not in get_args(AttentionBackend):
            raise ValueError(f"attention backend must be one of {get_args(AttentionBackend)}, got {self.backend!r}")
        if (self.rule is None) == (not self.groups):
            raise ValueError("attention needs either the rule of a whole sequence or the query groups of a decode step")


def register() -> None:
    """Register ``echo_attention`` in transformers (idempotent)."""
    AttentionInterface.register(NAME, echo_attention)


def echo_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: AttentionCall,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,  # the library's calling convention: sliding_window, position_ids and others that a rule makes unnecessary
) -> tuple[Tensor, None]:
    """Attend under a rule.

    Args:
        module: calling layer.
        query: (B, H, Q, D).
        key: (B, H / G, K, D).
        value: (B, H / G, K, D).
        attention_mask: rule and backend.
        scaling: factor on the scores; 1/sqrt(D) when None.
        dropout: attention dropout, supported by ``sdpa`` only.

    Returns:
        (B, Q, H, D) and None (no backend returns weights).

    Raises:
        ValueError: the backend does not support the call.
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    dtype = value.dtype
    common = computing_dtype(key, value)
    if torch.is_grad_enabled() and common == torch.bfloat16 and value.device.type == "cpu":
        common = torch.float32  # SDPA's bf16 backward is slow there
    query, key, value = query.to(common), key.to(common), value.to(common)
    with torch.autocast(query.device.type, enabled=False):
        if attention_mask.groups:
            call = attention_mask
            return attend_groups(query, key, value, call.groups, call.padding, scale, call.backend).to(dtype), None
        assert attention_mask.rule is not None  # checked by AttentionCall
        out = _BACKENDS[attention_mask.backend](query, key, value, attention_mask.rule, scale, dropout)
    return out.transpose(1, 2).to(dtype), None


def attend_groups(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    groups: tuple[QueryGroup, ...],
    padding: HiddenSlots | None,
    scale: float,
    backend: AttentionBackend = "sdpa",
) -> Tensor:
    """Attention of a decode step: every group of queries over its own prefix of the cached keys, without a mask.

    Args:
        q: (B, H, Q, D), any strides.
        k: (B, H / G, K, D).
        v: (B, H / G, K, D).
        groups: query groups, Q queries in total.
        padding: padding of ragged contexts; None if no slot is padding.
        scale: factor on the scores.
        backend: kernel; ``split`` is ``sdpa`` here.

    Returns:
        (B, Q, H, D).
    """
    attend = _GROUP_KERNELS[backend]
    parts, start = [], 0
    for group in groups:
        part = q[:, :, start : start + group.queries]
        parts.append(attend(part, k[:, :, : group.keys], v[:, :, : group.keys], padding, scale))
        start += group.queries
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return whole.transpose(1, 2)


def attend_two_blocks(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """:func:`attend_groups` for a fused step in one call, under the bias of :meth:`BlockKVCache.two_blocks_bias`."""
    return _folded(q, k, v, bias, scale).transpose(1, 2)


def _sdpa_group(q: Tensor, k: Tensor, v: Tensor, padding: HiddenSlots | None, scale: float) -> Tensor:
    return _folded(q, k, v, None if padding is None else padding.bias[..., : k.shape[2]].to(q.dtype), scale)


def _folded(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    # Heads that share a key head become further queries, instead of copies of the keys.
    out = F.scaled_dot_product_attention(q.reshape(*k.shape[:2], -1, q.shape[3]), k, v, attn_mask=bias, scale=scale)
    return out.reshape(q.shape)  # no view: kernels choose the strides


def _flex_group(q: Tensor, k: Tensor, v: Tensor, padding: HiddenSlots | None, scale: float) -> Tensor:
    kernel = flex_kernel(q)
    if padding is None:
        return kernel(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    bias_BS = padding.bias[:, 0, 0].to(q.dtype)

    def hide_padding(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + bias_BS[b, key]

    return kernel(q, k, v, score_mod=hide_padding, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def last_queries(groups: tuple[QueryGroup, ...], queries: int) -> tuple[QueryGroup, ...]:
    """Query groups of the last queries.

    >>> last_queries((QueryGroup(8, 100), QueryGroup(8, 108)), 10)
    (QueryGroup(queries=2, keys=100), QueryGroup(queries=8, keys=108))
    """
    kept: list[QueryGroup] = []
    for group in reversed(groups):
        if queries > 0:
            kept.insert(0, QueryGroup(min(group.queries, queries), group.keys))
        queries -= group.queries
    return tuple(kept)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule, scale: float, dropout: float) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=rule.dense_BQK[:, None], dropout_p=dropout, scale=scale)


def _split(q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule, scale: float, dropout: float) -> Tensor:
    if dropout:
        raise ValueError(f"attention backend 'split' has no dropout, got {dropout}; use 'sdpa'")
    view = rule.split
    P = view.context_width
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    context_mask = None if view.context_BPP is None else view.context_BPP[:, None]
    context = F.scaled_dot_product_attention(
        q[:, :, :P], k[:, :, :P], v[:, :, :P], attn_mask=context_mask, is_causal=context_mask is None, scale=scale
    )
    if q.shape[2] == P:
        return context
    to_context = view.response_to_context_BQK
    response = merged_attention(
        q[:, :, P:],
        (k[:, :, :P], v[:, :, :P], None if to_context is None else to_context[:, None]),
        (k[:, :, P:], v[:, :, P:], view.response_BQK[:, None]),
        scale,
    )
    return torch.cat([context, response], dim=2)


def _flex(q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule, scale: float, dropout: float) -> Tensor:
    if dropout:
        raise ValueError(f"attention backend 'flex' has no dropout, got {dropout}; use 'sdpa'")
    if q.device.type == "cpu" and q.requires_grad and torch.is_grad_enabled():
        raise ValueError("FlexAttention has no backward on a CPU: train with attention backend 'split' or 'sdpa'")
    return flex_kernel(q)(q, k, v, block_mask=rule.flex_mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def _flash(q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule, scale: float, dropout: float) -> Tensor:
    if dropout:
        raise ValueError(f"attention backend 'flash_attn' has no dropout here, got {dropout}; use 'sdpa'")
    return flash_attention.whole_sequence(q, k, v, rule, scale)


def flex_kernel(query: Tensor) -> Any:
    """``flex_attention`` for the query's device."""
    return flex_attention if query.device.type == "cpu" else compiled_flex_attention()


@cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    """``flex_attention`` compiled at its first call; uncompiled it would hold all scores in memory."""
    return torch.compile(flex_attention)


_BACKENDS = {"sdpa": _sdpa, "split": _split, "flex": _flex, "flash_attn": _flash}
_GROUP_KERNELS = {"sdpa": _sdpa_group, "split": _sdpa_group, "flex": _flex_group, "flash_attn": flash_attention.cached_group}
