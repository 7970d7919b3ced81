"""The machine a benchmark ran on: what it is called, how fast it reads memory and how fast it multiplies.

Knows torch, nothing of models.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch

_MEGABYTES_READ = 512
_MATRIX = 2048


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What no forward can beat."""

    dtype: str
    bandwidth: float
    """Bytes per second, read by a sum over a tensor larger than any cache."""
    flops: float
    """Floating-point operations per second of a large matrix product in ``dtype``."""


def measure_limits(dtype: torch.dtype, device: torch.device) -> Limits:
    """Measure both, the best of several tries: a limit is what the machine can do at its best."""
    data = torch.ones(_MEGABYTES_READ * 2**20 // 4, device=device)
    a, b = (torch.randn(_MATRIX, _MATRIX, device=device).to(dtype) for _ in range(2))
    return Limits(
        dtype=str(dtype).removeprefix("torch."),
        bandwidth=data.nbytes / _best(lambda: data.sum(), device),
        flops=2 * _MATRIX**3 / _best(lambda: a @ b, device),
    )


def _best(work: Callable[[], object], device: torch.device, tries: int = 7) -> float:
    work()
    return min(seconds(work, device) for _ in range(tries))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, queued work included."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def median_seconds(work: Callable[[], object], device: torch.device, tries: int = 15) -> float:
    """Median wall time of a call, after two that do not count."""
    for _ in range(2):
        work()
    return statistics.median(seconds(work, device) for _ in range(tries))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(limits: list[Limits], device: torch.device) -> dict[str, Any]:
    """The record that goes into every benchmark file."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "transformers", "echo-pl")},
        "limits": [asdict(limit) for limit in limits],
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
