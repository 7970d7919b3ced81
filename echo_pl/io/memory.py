"""Memory of the process: in use, at its peak, and the return of what is free."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

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


def restart_peak_memory(device: torch.device) -> bool:
    """Restart :func:`peak_memory_gb`; False where the system keeps the whole process's peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    return_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: sets the peak of resident memory back to what is resident now
    except OSError:
        return False
    return True


def memory_gb(device: torch.device) -> float | None:
    """Memory in use now, in GB (10^9 bytes): of tensors on a GPU, resident of the process elsewhere; None where it is not known."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e9
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])  # Linux
    except OSError:
        return None
    return pages * resource.getpagesize() / 1e9


def peak_memory_gb(device: torch.device | None = None) -> float:
    """Largest memory this process has had, in GB (10^9 bytes): on the device; None: on the GPU if there is one, else resident."""
    if device.type == "cuda" if device is not None else torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        # Linux: of this process alone; its ru_maxrss begins with that of the process that started it.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9
    except (OSError, StopIteration):
        pass
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
