"""One row of the comparison: a way to decode, and the figures it got. The schema of ``summary.json``.

Knows neither samplers nor how rows are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

MethodName = Literal["ar", "base", "base_one_step", "distilled"]
KVCache = Literal["vanilla", "fused"]
Row = dict[str, Any]

SCORES = (
    "finding_f1",
    "valid_sentences",
    "valid_reports",
    "rouge_l",
    "duplicate_word_rate",
    "repetition_rate",
    "stopped",
    "looped",
    "nfe",
    "tpf",
    "tpf_published",
    "forwards_per_block",
    "tps",
    "prefill_seconds",
    "seconds_per_report",
)
ROW_KEYS = ("method", "objective", "block_size", "kv_cache", "batch_size", "studies", *SCORES)

_NAMES = {"ar": "AR", "base": "base, multi-step", "base_one_step": "base, one step", "distilled": "distilled, one step"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Which way of decoding a row is about."""

    method: MethodName
    objective: str | None = None
    """Distillation objective of ``distilled`` (``dcd``, ``ce``, ...)."""
    block_size: int = 1
    """1 for ``ar``."""
    kv_cache: KVCache | None = None
    """How a finished block gets into the cache; ``None`` where there are no blocks, or no block cache."""
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.method not in get_args(MethodName):
            raise ValueError(f"method must be one of {get_args(MethodName)}, got {self.method!r}")
        if self.kv_cache not in (None, *get_args(KVCache)):
            raise ValueError(f"kv_cache must be None or one of {get_args(KVCache)}, got {self.kv_cache!r}")
        if (self.objective is not None) != (self.method == "distilled"):
            raise ValueError(f"objective belongs to method 'distilled', got {self.objective!r} for {self.method!r}")
        if self.block_size < 1 or self.batch_size < 1:
            raise ValueError(f"sizes must be positive, got block {self.block_size} and batch {self.batch_size}")

    @property
    def label(self) -> str:
        """What people read, e.g. ``distilled (dcd), L=8, fused, batch 1``."""
        parts = [method_label({"method": self.method, "objective": self.objective})]
        if self.method != "ar":
            parts.append(f"L={self.block_size}")
        if self.kv_cache is not None:
            parts.append(self.kv_cache)
        return ", ".join([*parts, f"batch {self.batch_size}"])

    @property
    def slug(self) -> str:
        """The same in the characters of a metric name, e.g. ``distilled-dcd-L8-fused-b1``."""
        size = None if self.method == "ar" else f"L{self.block_size}"
        return "-".join(part for part in (self.method, self.objective, size, self.kv_cache, f"b{self.batch_size}") if part)


def make_row(setting: Setting, scores: Mapping[str, float]) -> Row:
    """A row with exactly :data:`ROW_KEYS`; ``None``: forwards per block of AR, and what the corpus cannot give (no judge)."""
    row: Row = {
        "method": setting.method,
        "objective": setting.objective,
        "block_size": setting.block_size,
        "kv_cache": setting.kv_cache,
        "batch_size": setting.batch_size,
        "studies": int(scores["studies"]),
    }
    token_by_token = {"forwards_per_block": None} if setting.method == "ar" else {}
    return row | {name: scores.get(name) for name in SCORES} | token_by_token


def method_label(row: Mapping[str, Any]) -> str:
    """What people call the method of a row.

    >>> method_label({"method": "distilled", "objective": "dcd"})
    'distilled (dcd), one step'
    """
    name = _NAMES[row["method"]]
    return name.replace(",", f" ({row['objective']}),", 1) if row["objective"] else name


def speed_over_ar(rows: Iterable[Mapping[str, Any]]) -> list[float | None]:
    """Tokens per second of each row as a multiple of the AR row *at the same batch size*; ``None`` without one."""
    rows = list(rows)
    baseline = {row["batch_size"]: row["tps"] for row in rows if row["method"] == "ar"}
    return [row["tps"] / baseline[row["batch_size"]] if baseline.get(row["batch_size"]) else None for row in rows]
