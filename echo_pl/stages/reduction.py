"""Losses over the batch of all ranks. A rank divides by what all ranks have together, so that the mean over ranks, which DDP and
FSDP2 make of gradients, is the gradient of the whole batch: two ranks train what one trains on both their samples.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Return True if this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def all_reduce_mean(count: Tensor) -> Tensor:
    """A count summed over all ranks, divided by their number.

    Every rank must call it, in the same order as its other collectives.
    """
    if not is_distributed():
        return count
    total = count.detach().float().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
