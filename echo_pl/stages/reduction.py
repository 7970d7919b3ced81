"""Losses over the batch of all ranks. A rank divides by what all ranks have together, so that the mean over ranks, which DDP and
FSDP2 make of gradients, is the gradient of the whole batch: two ranks train what one trains on both their samples.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def is_alone() -> bool:
    """Whether there is one process."""
    return not (dist.is_available() and dist.is_initialized())


def share_of_ranks(count: Tensor) -> Tensor:
    """A count summed over all ranks, divided by their number.

    Every rank must call it, in the same order as its other collectives.
    """
    if is_alone():
        return count
    total = count.detach().float().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
