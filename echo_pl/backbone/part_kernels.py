"""Attention over one part of the keys, with the log-sum-exp of its scores: what :mod:`split_attention` merges.

One kernel per kind of device, all of the same two functions: torch's fused ones on a CPU and on a CUDA GPU, and the definition in
plain torch for everything else. A fused kernel's backward needs only (out, log-sum-exp) of the softmax that its part belongs to.

Shapes: B batch, H heads, Q queries, K keys of the part, D head size.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """Torch's memory-efficient CUDA kernel: float32, float16 and bfloat16, no compiler needed."""

    LSE_MULTIPLE = 32
    """The kernel keeps its log-sum-exps in rows of a multiple of this, filled with infinity."""
    BIAS_MULTIPLE = 16
    """And reads biases in rows of a multiple of this."""

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
        no_dropout = torch.zeros((), dtype=torch.long, device=q.device)  # seed and offset of draws that are not made
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
    """The definition, in float32 at least. It keeps a (Q, K) matrix of scores."""

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
        # The softmax's own term, sum of weight * gradient over *all* keys, is grad . out, whatever part they are in.
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
    """The kernel of the query's device; the plain one where there is none for it or for its dtype."""
    kernel = KERNELS.get(query.device.type, PLAIN)
    return PLAIN if query.dtype == torch.float64 and not isinstance(kernel, CpuKernel) else kernel
