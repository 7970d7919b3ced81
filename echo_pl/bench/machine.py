"""The machine of a benchmark: its name, how fast it reads memory and how fast it multiplies."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

import torch

from echo_pl.io.clock import now

_MEGABYTES_READ = 512
_MATRIX = 2048


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a forward whose weights come from memory; those of a tiny model stay in the processor's cache."""

    dtype: str
    bandwidth: float
    """Bytes per second, read by a sum over a tensor larger than any cache."""
    flops: float
    """Floating-point operations per second of a large matrix product in ``dtype``."""


def measure_limits(dtype: torch.dtype, device: torch.device) -> Limits:
    """Measure both limits, the best of several tries."""
    data = torch.ones(_MEGABYTES_READ * 2**20 // 4, device=device)
    a, b = (torch.randn(_MATRIX, _MATRIX, device=device).to(dtype) for _ in range(2))
    return Limits(
        dtype=str(dtype).removeprefix("torch."),
        bandwidth=data.nbytes / _best(lambda: data.sum(), device),
        flops=2 * _MATRIX**3 / _best(lambda: a @ b, device),
    )


def _best(work: Callable[[], object], device: torch.device, tries: int = 7) -> float:
    """Fewest seconds of several tries, after one that does not count."""
    times = [now(device)]
    for _ in range(1 + tries):
        work()
        times.append(now(device))
    return min(after - before for before, after in pairwise(times[1:]))


def describe(device: torch.device) -> dict[str, Any]:
    """Machine and packages for the record of a benchmark."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("torch", "transformers", "flash-attn", "echo-pl")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
