"""How much memory the process has needed, and giving it back. Knows nothing of what it did."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys

import torch


def return_free_memory() -> None:
    """Give memory that Python and torch have freed back to the system; without glibc, nothing.

    Tensors of ever other sizes leave gaps in glibc's heap that it keeps: a process that runs several trainings one after the other
    would carry each one's gaps into the next.
    """
    gc.collect()  # a trainer and its stage refer to each other
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def peak_memory_gb() -> float:
    """Largest memory this process has had, in GB (10^9 bytes): on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
