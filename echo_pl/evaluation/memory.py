"""How much memory the process has needed. Knows nothing of what it did."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory_gb() -> float:
    """Largest memory this process has had, in GB (10^9 bytes): on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
