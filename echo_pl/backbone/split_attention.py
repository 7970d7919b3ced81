"""Attention of the same queries over two sets of keys, merged exactly by their log-sum-exps.

Each part runs through a kernel of its own, which also returns the log-sum-exp of its scores, so that a part without a mask needs
none and the parts' keys are never joined. The backward of such a kernel needs only (out, log-sum-exp) of the *whole* softmax to
give the part's exact gradients, so each part's backward is called with the merged ones. Knows nothing of rules or models.

Shapes: B batch, H heads, Q queries, K keys of a part, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from echo_pl.backbone.part_kernels import kernel_for

Part = tuple[Tensor, Tensor, Tensor | None]
"""Keys (B, H, K, D), values (B, H, K, D) and a bool mask that broadcasts to (B, 1, Q, K), or None for no mask."""


def merged_attention(query: Tensor, first: Part, second: Part, scale: float) -> Tensor:
    """softmax(q [k1 k2]^T * scale) [v1 v2], without joining the two parts' keys or masks.

    Every query must be allowed at least one key of each part.

    Args:
        query: (B, H, Q, D).
        first: first part.
        second: second part.
        scale: factor on the scores.

    Returns:
        (B, H, Q, D).
    """
    bias1, bias2 = _bias(first[2], query), _bias(second[2], query)
    return _MergedAttention.apply(query, first[0], first[1], bias1, second[0], second[1], bias2, scale)


def _bias(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """The mask as (B, 1, Q, K) to add to scores: 0 or -inf."""
    if mask is None:
        return None
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    bias.masked_fill_(~mask, -torch.inf)
    return bias.expand(query.shape[0], -1, query.shape[2], -1)


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
        kernel = kernel_for(q)
        out1, lse1 = kernel.forward(q, k1, v1, b1, scale)
        out2, lse2 = kernel.forward(q, k2, v2, b2, scale)
        lse = torch.logaddexp(lse1, lse2)
        w1, w2 = (lse1 - lse).exp().unsqueeze(-1), (lse2 - lse).exp().unsqueeze(-1)
        out = (w1 * out1).add_(w2 * out2).to(q.dtype)
        ctx.save_for_backward(q, k1, v1, b1, k2, v2, b2, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k1, v1, b1, k2, v2, b2, out, lse = ctx.saved_tensors
        kernel = kernel_for(q)
        grad = grads[0].contiguous()
        dq1, dk1, dv1 = kernel.backward(grad, q, k1, v1, b1, out, lse, ctx.scale)
        dq2, dk2, dv2 = kernel.backward(grad, q, k2, v2, b2, out, lse, ctx.scale)
        return dq1 + dq2, dk1, dv1, None, dk2, dv2, None, None
