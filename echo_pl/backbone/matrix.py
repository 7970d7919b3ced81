"""A linear layer's weight as decoding multiplies by it: as it stands, or in the layout of a CPU's bfloat16 kernels.

At few rows a bfloat16 product on a CPU is the reading of its weight. Torch's kernel for a plain weight arranges it anew at every
call; one that was arranged beforehand (oneDNN's blocked layout, which TorchInductor uses for frozen models too) is read once, at
half the time and less. The numbers are the same. It is a second copy of the weight.

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Matrix:
    """A weight (N, K).

    Args:
        weight: what is multiplied by.
        sources: the parameters that it is made of, as views of it.
    """

    def __init__(self, weight: Tensor, sources: Sequence[nn.Parameter] = ()) -> None:
        self.weight = weight
        self._transposed = weight.T

    @property
    def stale(self) -> bool:
        """Whether the parameters have been written to and this has not followed."""
        return False

    def of(self, x_MK: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """(M, N)."""
        return F.linear(x_MK, self.weight, bias_N)

    def added_to(self, residual_MN: Tensor, x_MK: Tensor) -> Tensor:
        """The product and a residual, in one call."""
        return torch.addmm(residual_MN, x_MK, self._transposed)


class PackedMatrix(Matrix):
    """A bfloat16 weight (N, K) in a CPU's own layout, beside the one it was made of.

    It notices what is written to the parameters, but not to their ``.data``, behind autograd's back.
    """

    def __init__(self, weight: Tensor, sources: Sequence[nn.Parameter] = ()) -> None:
        """Arrange a copy.

        Raises:
            ValueError: not bfloat16, not on a CPU, or this torch is built without oneDNN.
        """
        super().__init__(weight)
        if why := unpackable(weight):
            raise ValueError(f"pack_weights=true is for bfloat16 weights on a CPU: {why}; set it to false")
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._versions = [(source, source._version) for source in sources]

    @property
    def stale(self) -> bool:
        """See :attr:`Matrix.stale`."""
        return any(source._version != version for source, version in self._versions)

    def of(self, x_MK: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """See :meth:`Matrix.of`."""
        return torch.ops.mkldnn._linear_pointwise(x_MK, self._packed, bias_N, "none", [], "")

    def added_to(self, residual_MN: Tensor, x_MK: Tensor) -> Tensor:
        """See :meth:`Matrix.added_to`."""
        return torch.ops.mkldnn._linear_pointwise.binary(x_MK, residual_MN, self._packed, None, "add")


def unpackable(weight: Tensor) -> str:
    """Why a weight cannot be packed; empty if it can."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return f"these are {str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return "this torch is built without oneDNN"
    return ""
