"""Wall time on a machine that queues work."""

from __future__ import annotations

import time

import torch


def now(device: torch.device) -> float:
    """Wall time in seconds, after everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
