"""Weight of a linear layer for decoding: plain, or packed in the layout of a CPU's bfloat16 kernels.

With few rows, a bfloat16 product on a CPU takes as long as reading its weight. Torch's kernel reorders a plain weight at every
call. A packed one (oneDNN's blocked layout, as TorchInductor uses for frozen models) is reordered once: half the time or less.
The numbers are the same; the packed weight is a second copy.

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Matrix:
    """Weight (N, K); ``sources`` are the parameters it was joined from, which are views of it."""

    def __init__(self, weight: Tensor, sources: Sequence[nn.Parameter] = ()) -> None:
        self.weight = weight
        self._transposed = weight.T

    @property
    def stale(self) -> bool:
        """True if the parameters were written after this copy was made."""
        return False

    def matmul(self, x_MK: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """Product (M, N)."""
        return F.linear(x_MK, self.weight, bias_N)

    def matmul_add(self, residual_MN: Tensor, x_MK: Tensor) -> Tensor:
        """Sum of the product and a residual, in one call."""
        return torch.addmm(residual_MN, x_MK, self._transposed)


class PackedMatrix(Matrix):
    """Copy of a bfloat16 weight (N, K) in a CPU's own layout.

    It detects writes to the parameters, but not to their ``.data``, which bypasses autograd.
    """

    def __init__(self, weight: Tensor, sources: Sequence[nn.Parameter] = ()) -> None:
        """Pack a copy.

        Raises:
            ValueError: not bfloat16, not on a CPU, or this torch is built without oneDNN.
        """
        super().__init__(weight)
        if reason := reason_not_packable(weight):
            raise ValueError(f"pack_weights=true is for bfloat16 weights on a CPU: {reason}; set it to false")
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._versions = [(source, source._version) for source in sources]

    @property
    def stale(self) -> bool:
        """See :attr:`Matrix.stale`."""
        return any(source._version != version for source, version in self._versions)

    def matmul(self, x_MK: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """See :meth:`Matrix.of`."""
        return torch.ops.mkldnn._linear_pointwise(x_MK, self._packed, bias_N, "none", [], "")

    def matmul_add(self, residual_MN: Tensor, x_MK: Tensor) -> Tensor:
        """See :meth:`Matrix.matmul_add`."""
        return torch.ops.mkldnn._linear_pointwise.binary(x_MK, residual_MN, self._packed, None, "add")


def reason_not_packable(weight: Tensor) -> str | None:
    """Reason why a weight cannot be packed; None if it can."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return f"these are {str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return "this torch is built without oneDNN"
    return None
