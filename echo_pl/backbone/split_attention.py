"""Attention of the same queries over two sets of keys, merged exactly by their log-sum-exps.

Each part runs through its own kernel call, which also returns the log-sum-exp of its scores: the parts' keys are never joined, and
a part without a mask needs none. Given (out, log-sum-exp) of the *whole* softmax, a kernel's backward returns the exact gradients
of its part. Kernels: torch's fused ones on a CPU and on a CUDA GPU, and the definition in plain torch for everything else.

Shapes: B batch, H heads, Q queries, K keys of a part, D head size.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """Mask as a bias (B, 1, Q, K) of 0 and -inf."""
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


class PartKernel(Protocol):
    """Forward and backward of attention over one part."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        """Attend to one part.

        Args:
            q: (B, H, Q, D).
            k: (B, H, K, D).
            v: (B, H, K, D).
            bias: (B, 1, Q, K) added to the scores, or None.
            scale: factor on the scores before the bias.

        Returns:
            (B, H, Q, D) and the log-sum-exp of the scores, (B, H, Q).
        """

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of this part's queries, keys and values, when ``out`` and ``lse`` are those of the whole softmax."""


class CpuKernel:
    """Torch's fused CPU kernel."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        """See :class:`PartKernel`."""
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=bias, scale=scale)
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`PartKernel`."""
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        dq, dk, dv = kernel(grad, q, k, v, out, lse, 0.0, False, attn_mask=bias, scale=scale)
        return dq, dk, dv


class CudaKernel:
    """Torch's memory-efficient CUDA kernel for float32, float16 and bfloat16."""

    LSE_MULTIPLE = 32
    """Rows of log-sum-exps are padded with infinity to a multiple of this."""
    BIAS_MULTIPLE = 16
    """Rows of biases are padded to a multiple of this."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        """See :class:`PartKernel`."""
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        out, lse, _, _ = kernel(q, k, v, self._aligned(bias, q), True, 0.0, False, scale=scale)
        return out, lse[..., : q.shape[2]]

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`PartKernel`."""
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention_backward
        padded = F.pad(lse, (0, -lse.shape[-1] % self.LSE_MULTIPLE), value=torch.inf)
        no_dropout = torch.zeros((), dtype=torch.long, device=q.device)  # seed and offset, which are not used
        wanted = [True, True, True, False]
        dq, dk, dv, _ = kernel(
            grad, q, k, v, self._aligned(bias, q), out, padded, no_dropout, no_dropout, 0.0, wanted, False, scale=scale
        )
        return dq, dk, dv

    def _aligned(self, bias: Tensor | None, q: Tensor) -> Tensor | None:
        if bias is None:
            return None
        K = bias.shape[-1]
        return F.pad(bias, (0, -K % self.BIAS_MULTIPLE))[..., :K].expand(-1, q.shape[1], -1, -1)


class PlainKernel:
    """Definition in plain torch, in float32 at least, with a (Q, K) matrix of scores."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        """See :class:`PartKernel`."""
        scores = self._scores(q, k, bias, scale)
        lse = scores.logsumexp(-1)
        return ((scores - lse.unsqueeze(-1)).exp() @ v.to(scores.dtype)).to(q.dtype), lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`PartKernel`."""
        weights = (self._scores(q, k, bias, scale) - lse.unsqueeze(-1)).exp()
        # The softmax's own term, the sum of weight * gradient over *all* keys of all parts, is grad . out.
        precise = weights.dtype
        grad, v, out = grad.to(precise), v.to(precise), out.to(precise)
        dscores = weights * (grad @ v.transpose(2, 3) - (grad * out).sum(-1, keepdim=True)) * scale
        gradients = dscores @ k.to(precise), dscores.transpose(2, 3) @ q.to(precise), weights.transpose(2, 3) @ grad
        dq, dk, dv = (gradient.to(q.dtype) for gradient in gradients)
        return dq, dk, dv

    def _scores(self, q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        precise = torch.promote_types(q.dtype, torch.float32)
        scores = (q.to(precise) @ k.to(precise).transpose(2, 3)) * scale
        return scores if bias is None else scores + bias


KERNELS: dict[str, PartKernel] = {"cpu": CpuKernel(), "cuda": CudaKernel()}
"""By device type."""
PLAIN = PlainKernel()


def kernel_for(query: Tensor) -> PartKernel:
    """Kernel for the query's device and dtype; the plain one where no other exists."""
    kernel = KERNELS.get(query.device.type, PLAIN)
    return PLAIN if query.dtype == torch.float64 and not isinstance(kernel, CpuKernel) else kernel
