"""Attention of the same queries over two sets of keys, merged exactly by their log-sum-exps.

Each part runs through the fused CPU kernel, which also returns the log-sum-exp of its scores. The backward of such a kernel needs
only (out, log-sum-exp) of the *whole* softmax to give the part's exact gradients, so each part's backward is called with the
merged ones. Knows nothing of rules or models.

Only the CPU has this kernel. On any other device nothing is split: the parts are joined and go through one call under a dense
mask, of the same result but without the saving, and a warning says so once.

Shapes: B batch, H heads, Q queries, K keys of a part, D head size.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Part = tuple[Tensor, Tensor, Tensor | None]
"""Keys (B, H, K, D), values (B, H, K, D) and a bool mask that broadcasts to (B, H, Q, K), or None for no mask."""


def merged_attention(query: Tensor, first: Part, second: Part, scale: float) -> Tensor:
    """softmax(q [k1 k2]^T * scale) [v1 v2], on a CPU without joining the two parts' keys or masks.

    Every query must be allowed at least one key of each part. Off the CPU: one masked call, and a warning.

    Args:
        query: (B, H, Q, D), float32 or float64.
        first: first part.
        second: second part.
        scale: factor on the scores.

    Returns:
        (B, H, Q, D).
    """
    if query.device.type != "cpu":
        _warn_of_one_call(query.device.type)
        return _one_call(query, first, second, scale)
    bias1, bias2 = _bias(first[2], query), _bias(second[2], query)
    return _MergedAttention.apply(query, first[0], first[1], bias1, second[0], second[1], bias2, scale)


def _bias(mask: Tensor | None, query: Tensor) -> Tensor | None:
    if mask is None:
        return None
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    bias.masked_fill_(~mask, -torch.inf)
    return bias.expand(-1, -1, query.shape[2], -1)


@cache
def _warn_of_one_call(device: str) -> None:
    warnings.warn(
        f"attention backend 'split' splits on a CPU only; on {device} it is one call under a dense mask, as 'sdpa' is: try 'flex'",
        stacklevel=2,
    )


def _one_call(query: Tensor, first: Part, second: Part, scale: float) -> Tensor:
    shape = (query.shape[0], 1, query.shape[2])

    def dense(part: Part) -> Tensor:
        keys, _, mask = part
        if mask is None:
            return torch.ones(*shape, keys.shape[2], dtype=torch.bool, device=query.device)
        return mask.expand(*shape, -1)

    keys, values = torch.cat([first[0], second[0]], 2), torch.cat([first[1], second[1]], 2)
    mask = torch.cat([dense(first), dense(second)], -1)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)


class _MergedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k1: Tensor,
        v1: Tensor,
        b1: Tensor | None,
        k2: Tensor,
        v2: Tensor,
        b2: Tensor | None,
        scale: float,
    ) -> Tensor:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out1, lse1 = kernel(q, k1, v1, 0.0, False, attn_mask=b1, scale=scale)
        out2, lse2 = kernel(q, k2, v2, 0.0, False, attn_mask=b2, scale=scale)
        lse = torch.logaddexp(lse1, lse2)
        w1, w2 = (lse1 - lse).exp().unsqueeze(-1), (lse2 - lse).exp().unsqueeze(-1)
        out = (w1 * out1).add_(w2 * out2)
        ctx.save_for_backward(q, k1, v1, b1, k2, v2, b2, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k1, v1, b1, k2, v2, b2, out, lse = ctx.saved_tensors
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grad = grads[0].contiguous()
        dq1, dk1, dv1 = kernel(grad, q, k1, v1, out, lse, 0.0, False, attn_mask=b1, scale=ctx.scale)
        dq2, dk2, dv2 = kernel(grad, q, k2, v2, out, lse, 0.0, False, attn_mask=b2, scale=ctx.scale)
        return dq1 + dq2, dk1, dv1, None, dk2, dv2, None, None
