"""Attention through the flash-attn package, which takes no masks, and the calls for each case.

- a whole context under ``causal``: ``flash_attn_func`` (padding comes last, so no real token attends to it)
- the response copies of a training sequence, and other contexts: sequences of variable lengths (:mod:`echo_pl.diffusion.varlen`),
  the context being one part of the keys and the copies another, merged by their log-sum-exps. Its public function gives no
  gradient to a merged result, so its two private functions are called. Given (out, log-sum-exp) of the whole softmax, the
  backward of a part returns that part's exact gradients.
- a decode step: ``flash_attn_with_kvcache``, once per query group, in two parts when contexts are ragged

It needs a CUDA GPU. Tests run it on a CPU with stand-ins for the package's functions.

Shapes: B batch, H query heads, G query heads per key head, Q queries, K keys, D head size, X queries and Y keys of a part, packed.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from echo_pl.backbone.kv_cache import CachePadding, HiddenSlots
from echo_pl.diffusion.block_mask import AttentionRule
from echo_pl.diffusion.varlen import VarlenPart

_LARGEST_HEAD = 256


@cache
def package() -> Any:
    """``flash_attn.flash_attn_interface``.

    Raises:
        ValueError: the package is not installed, or does not load.
    """
    remedy = "install torch for your GPU, then pip install --no-build-isolation 'echo-pl[cuda]'; or choose sdpa, split or flex"
    try:
        installed = version("flash-attn")
        interface = importlib.import_module("flash_attn.flash_attn_interface")
    except ImportError as error:  # PackageNotFoundError is one
        raise ValueError(f"attention backend 'flash_attn' needs the flash-attn package ({error}): {remedy}") from error
    # Two of the functions called here are private, and differ before 2.8.
    if not (2, 8) <= tuple(int(number) for number in installed.split(".")[:2]) < (3,):
        raise ValueError(f"attention backend 'flash_attn' needs flash-attn 2.8 or newer and below 3, found {installed}: {remedy}")
    return interface


def reason_unsupported(query: Tensor) -> str | None:
    """Reason why the kernels do not support these queries; None if they do."""
    D = query.shape[-1]
    if query.device.type != "cuda":
        return f"it needs a CUDA GPU, the model is on {query.device}"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return (
            f"it computes in float16 or bfloat16, got {query.dtype}: train with precision bf16-mixed, decode with bfloat16 weights"
        )
    if D % 8 or D > _LARGEST_HEAD:
        return f"its heads have a multiple of 8 and at most {_LARGEST_HEAD} dimensions, got {D}"
    return None


def _check_supported(query: Tensor) -> None:
    if reason := reason_unsupported(query):
        raise ValueError(f"attention backend 'flash_attn' cannot be used here: {reason}; or choose sdpa, split or flex")


def whole_sequence(q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule, scale: float) -> Tensor:
    """Attention of a context, or of a training sequence ``[context | response copies]``.

    Args:
        q: (B, H, Q, D).
        k: (B, H / G, Q, D).
        v: (B, H / G, Q, D).
        rule: rule with a ``context_width``.
        scale: factor on the scores.

    Returns:
        (B, H, Q, D); zeros or any finite values at padding.

    Raises:
        ValueError: the kernels do not support the queries, or the rule is not of a whole sequence.
    """
    _check_supported(q)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    view = rule.varlen(len(q))
    P = view.causal_width
    pieces = []
    if P:
        pieces.append(package().flash_attn_func(q[:, :P], k[:, :P], v[:, :P], softmax_scale=scale, causal=True))
    if view.parts:
        pieces.append(_PartsAttention.apply(q, k, v, view.parts, scale)[:, P:])
    return torch.cat(pieces, dim=1).transpose(1, 2)


def cached_group(q: Tensor, k: Tensor, v: Tensor, padding: HiddenSlots | None, scale: float) -> Tensor:
    """Attention of one query group of a decode step over its prefix of the cache.

    Args:
        q: (B, H, Q, D).
        k: (B, H / G, K, D), a view of the cache.
        v: (B, H / G, K, D).
        padding: padding of ragged contexts.
        scale: factor on the scores.

    Returns:
        (B, H, Q, D).

    Raises:
        ValueError: the kernels do not support the queries.
    """
    _check_supported(q)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    kernel = package().flash_attn_with_kvcache
    if padding is None:
        return kernel(q, k, v, cache_seqlens=k.shape[1], softmax_scale=scale).transpose(1, 2)
    assert isinstance(padding, CachePadding)  # the kernel takes lengths and no bias; compiled steps, which have a bias, refuse it
    P = padding.width
    lengths_B = padding.lengths_B.to(torch.int32)
    context, context_lse = kernel(q, k[:, :P], v[:, :P], cache_seqlens=lengths_B, softmax_scale=scale, return_softmax_lse=True)
    response, response_lse = kernel(
        q, k[:, P:], v[:, P:], cache_seqlens=k.shape[1] - P, softmax_scale=scale, return_softmax_lse=True
    )
    context_lse = _empty_as_minus_inf(context_lse)
    lse_BHQ = torch.logaddexp(context_lse, response_lse)
    weights = ((lse - lse_BHQ).exp().transpose(1, 2).unsqueeze(-1) for lse in (context_lse, response_lse))
    return sum(w * out for w, out in zip(weights, (context, response), strict=True)).to(q.dtype).transpose(1, 2)


def _empty_as_minus_inf(lse: Tensor) -> Tensor:
    """Replace the package's +inf for a query without keys in a part (an empty context, absolute grid) by -inf."""
    return torch.where(lse == torch.inf, -torch.inf, lse)


class _PartsAttention(torch.autograd.Function):
    """Attention of queries over the keys of all their parts; queries without a part get zeros."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: tuple[VarlenPart, ...], scale: float) -> Tensor:
        kernel = package()._flash_attn_varlen_forward
        flat_q, flat_k, flat_v = (x.flatten(0, 1) for x in (q, k, v))
        precise = torch.promote_types(q.dtype, torch.float32)
        out = flat_q.new_zeros(flat_q.shape, dtype=precise)
        lse = flat_q.new_full(flat_q.shape[:2], -torch.inf, dtype=precise)
        for part in parts:
            part_out, part_lse, *_ = kernel(
                flat_q[part.query_X],
                flat_k[part.key_Y],
                flat_v[part.key_Y],
                *_lengths(part),
                0.0,
                scale,
                causal=part.causal,
            )
            before, now = lse[part.query_X], _empty_as_minus_inf(part_lse.T)
            after = torch.logaddexp(before, now)
            # -inf - -inf if neither this part nor an earlier one has keys: weight 0 until a part has keys for the query.
            earlier, later = ((one - after).exp().nan_to_num(0.0).unsqueeze(-1) for one in (before, now))
            out[part.query_X] = out[part.query_X] * earlier + part_out * later
            lse[part.query_X] = after
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out.view_as(q)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        kernel = package()._flash_attn_varlen_backward
        flat_q, flat_k, flat_v, grad = (x.flatten(0, 1) for x in (q, k, v, grads[0]))
        total_q, total_k, total_v = (torch.zeros_like(x, dtype=lse.dtype) for x in (flat_q, flat_k, flat_v))
        for part in ctx.parts:
            part_q, part_k, part_v = flat_q[part.query_X], flat_k[part.key_Y], flat_v[part.key_Y]
            dq, dk, dv = (torch.empty_like(x) for x in (part_q, part_k, part_v))
            kernel(
                grad[part.query_X],
                part_q,
                part_k,
                part_v,
                out[part.query_X],
                lse[part.query_X].T.contiguous(),
                dq,
                dk,
                dv,
                *_lengths(part),
                0.0,
                ctx.scale,
                part.causal,
                -1,  # no window on either side
                -1,
                0.0,  # no cap on the scores
                None,  # no slopes
                torch.are_deterministic_algorithms_enabled(),
            )
            total_q.index_add_(0, part.query_X, dq.to(lse.dtype))
            total_k.index_add_(0, part.key_Y, dk.to(lse.dtype))
            total_v.index_add_(0, part.key_Y, dv.to(lse.dtype))
        gradients = (total.to(x.dtype).view_as(x) for total, x in ((total_q, q), (total_k, k), (total_v, v)))
        return *gradients, None, None


def _lengths(part: VarlenPart) -> tuple[Tensor, Tensor, int, int]:
    return part.query_ends, part.key_ends, part.longest_query, part.longest_key
