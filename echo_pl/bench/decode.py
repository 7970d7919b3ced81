"""Decoding speed: every method from the same prefill, interleaved, on the same weights.

nfe, tpf and tps are those of METHOD.md 4, over a fixed number of tokens: nothing ends a report. Random weights are sure of nothing,
so that at a threshold the multi-step base would commit one token per forward; it gets ``denoising_steps`` = L / 2 instead, two
tokens per forward, which is what the paper reports of its base (1.9 to 2.1).

Shapes: B batch, L block size.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from echo_pl.backbone.attention import AttentionBackend
from echo_pl.backbone.stock_generate import stock_generate
from echo_pl.backbone.vlm import VLM
from echo_pl.bench.machine import Limits
from echo_pl.bench.models import BenchModel, text_prompts
from echo_pl.bench.roofline import least_autoregressive, least_one_step
from echo_pl.io.memory import peak_memory_gb, restart_peak_memory
from echo_pl.sampling import AutoregressiveSampler, BlockSampler, DecodeConfig, LoopStop
from echo_pl.sampling.config import KVCacheMode
from echo_pl.sampling.prefill import Prefill, prefill
from echo_pl.structs import Batch, DecodeResult, SpecialTokens

_NO_LOOP_STOP = LoopStop(enabled=False)
Row = dict[str, Any]
"""One method at one place of the grid, as in ``outputs/bench/decode.json``."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is timed."""

    block_sizes: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    tokens: int
    """Every method writes so many per sample."""
    repetitions: int
    generate_repetitions: int
    """Of the library's ``generate``, which computes the context every time."""
    prefill_repetitions: int
    least_seconds: float = 0.0
    """A repetition decodes as often in a row as takes so long: a single decode of a small model is over before it is warm."""
    compile: bool = False
    """Of all our decoders, the autoregressive one too."""

    def __post_init__(self) -> None:
        for name in ("block_sizes", "batch_sizes", "contexts"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive numbers, got {list(getattr(self, name))}")
        for L in self.block_sizes:
            if L % 2 and L > 1:
                raise ValueError(f"block sizes must be even, as the base commits two tokens a step, got {L}")
            if self.tokens % L:
                raise ValueError(f"tokens must be a multiple of every block size, got {self.tokens} and block size {L}")
        if self.repetitions < 1 or self.prefill_repetitions < 1 or self.generate_repetitions < 0:
            raise ValueError("repetitions and prefill_repetitions must be at least 1, generate_repetitions at least 0")
        if self.tokens < 2:
            raise ValueError(f"tokens must be at least 2, as the first one comes out of prefill, got {self.tokens}")
        if self.least_seconds < 0:
            raise ValueError(f"least_seconds must not be negative, got {self.least_seconds}")


@dataclass(kw_only=True)
class Timing:
    """One method's repetitions."""

    method: str
    kv_cache: str | None
    block_size: int
    run: Callable[[], DecodeResult]
    repetitions: int
    decodes: int = 1
    """In one repetition."""
    seconds: list[float] = field(default_factory=list)
    """Of one decode, the mean of a repetition."""
    prefill_seconds: list[float] = field(default_factory=list)
    result: DecodeResult | None = None
    peak_memory_mb: float | None = None

    def warm_up(self, device: torch.device, least_seconds: float) -> None:
        """Two decodes that are not timed: the first makes buffers and shows the memory, the second how long one takes.

        Memory is looked at here and not while time is taken, because to restart the peak all free memory is given back.
        """
        restarted = restart_peak_memory(device)
        self.run()
        if restarted:  # else the system only knows the peak of everything so far
            self.peak_memory_mb = 1e3 * peak_memory_gb(device)
        self.result = self.run()
        self.decodes = max(1, math.ceil(least_seconds / (self.result.prefill_seconds + self.result.decode_seconds)))

    def repeat(self) -> None:
        """Decode, and remember how long it took."""
        results = [self.run() for _ in range(self.decodes)]
        self.seconds.append(statistics.fmean(result.decode_seconds for result in results))
        self.prefill_seconds.append(statistics.fmean(result.prefill_seconds for result in results))


def time_model(
    name: str,
    model: BenchModel,
    grid: Grid,
    limits: Limits,
    device: torch.device,
    attention: AttentionBackend,
    progress: Callable[[str], None],
) -> Iterator[list[Row]]:
    """Build a model and time all methods at every batch size and context; yields the rows of one such place at a time."""
    vlm = model.build(device, attention)
    for batch_size in grid.batch_sizes:
        for context in grid.contexts:
            progress(f"{name}, batch {batch_size}, context {context}")
            batch = text_prompts(batch_size, context, model.vocabulary, device)
            timings, prefill_seconds = _time_place(vlm, model.special, batch, grid)
            yield _rows(name, model, batch_size, context, grid, timings, prefill_seconds, limits)


def _time_place(vlm: VLM, special: SpecialTokens, batch: Batch, grid: Grid) -> tuple[list[Timing], list[float]]:
    room = grid.tokens + 3 * max(grid.block_sizes)

    def start() -> Prefill:
        return prefill(vlm, batch.context_ids_BP, batch.context_lengths_B, batch, capacity=room, logits="last")

    starts = [start() for _ in range(1 + grid.prefill_repetitions)]
    shared = starts[-1]
    prefill_seconds = [s.seconds for s in starts[1:]]
    starts.clear()
    timings = list(_methods(vlm, special, batch, shared, grid))
    for timing in timings:
        if timing.repetitions:
            timing.warm_up(vlm.device, grid.least_seconds)
    for round_ in range(max(t.repetitions for t in timings)):
        for timing in timings:
            if round_ < timing.repetitions:
                timing.repeat()
    return [t for t in timings if t.seconds], prefill_seconds


def _methods(vlm: VLM, special: SpecialTokens, batch: Batch, start: Prefill, grid: Grid) -> Iterator[Timing]:
    autoregressive = AutoregressiveSampler(vlm, special, grid.tokens, loop_stop=_NO_LOOP_STOP, compile=grid.compile)
    yield Timing(
        method="ar",
        kv_cache=None,
        block_size=1,
        run=lambda: autoregressive.generate(batch, start=start),
        repetitions=grid.repetitions,
    )
    yield Timing(
        method="ar_generate",
        kv_cache=None,
        block_size=1,
        run=lambda: _library_s_generate(vlm, batch, grid.tokens),
        repetitions=grid.generate_repetitions,
    )
    for L in grid.block_sizes:
        for method, steps in (("base", max(1, L // 2)), ("one_step", 1)):
            for kv_cache in ("vanilla", "fused"):
                sampler = BlockSampler(vlm, special, _decode_config(L, grid, steps, kv_cache))
                yield Timing(
                    method=method,
                    kv_cache=kv_cache,
                    block_size=L,
                    run=lambda sampler=sampler: sampler.generate(batch, start=start),  # type: ignore[misc]
                    repetitions=grid.repetitions,
                )


def _decode_config(L: int, grid: Grid, steps: int, kv_cache: KVCacheMode) -> DecodeConfig:
    return DecodeConfig(
        block_size=L,
        max_response_tokens=grid.tokens,
        denoising_steps=steps,
        kv_cache=kv_cache,
        loop_stop=_NO_LOOP_STOP,
        compile=grid.compile,
    )


def _library_s_generate(vlm: VLM, batch: Batch, tokens: int) -> DecodeResult:
    ids_BR, prefill_seconds, decode_seconds = stock_generate(vlm, batch, tokens)
    B = len(batch)
    none_B = torch.zeros(B, dtype=torch.bool)
    return DecodeResult(
        tokens=tuple(ids_BR.cpu()),
        stopped_B=none_B,
        looped_B=none_B,
        nfe_B=torch.full((B,), tokens - 1),
        kv_write_nfe_B=torch.zeros(B, dtype=torch.long),
        written_B=torch.full((B,), tokens),
        forwards=tokens - 1,
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
        block_size=1,
    )


def _rows(
    name: str,
    model: BenchModel,
    batch_size: int,
    context: int,
    grid: Grid,
    timings: Sequence[Timing],
    prefill_seconds: list[float],
    limits: Limits,
) -> list[Row]:
    rows = [_row(name, batch_size, context, timing, prefill_seconds) for timing in timings]
    ar, tokens = rows[0], grid.tokens
    sizes = {"samples": batch_size, "context": context, "tokens": tokens}
    least_ar = least_autoregressive(model.shape, limits, **sizes)
    for row in rows:
        row["compiled"] = grid.compile and row["method"] != "ar_generate"
        row["dtype"] = model.dtype
        row["speedup_over_ar"] = row["tps_median"] / ar["tps_median"]
        in_theory = row["tpf"] / ar["tpf"]
        row["efficiency"] = row["speedup_over_ar"] / in_theory
        row["roofline_efficiency"] = row["roofline_tps"] = row["of_roofline"] = None
        if row["method"] == "ar":
            row["roofline_tps"] = batch_size * tokens / least_ar
        elif row["method"] == "one_step" and row["kv_cache"] == "fused":
            least = least_one_step(model.shape, limits, block_size=row["block_size"], **sizes)
            row["roofline_tps"] = batch_size * tokens / least
            row["roofline_efficiency"] = least_ar / least / in_theory
        if row["roofline_tps"] is not None:
            row["of_roofline"] = row["tps_median"] / row["roofline_tps"]
    return rows


def _row(name: str, batch_size: int, context: int, timing: Timing, prefill_seconds: list[float]) -> Row:
    result = timing.result
    assert result is not None
    written, nfe = int(result.written_B.sum()), int(result.nfe_B.sum())
    tps = [written / seconds for seconds in timing.seconds]
    # The library's generate has its own prefill; all others start from one that was timed by itself.
    prefills = timing.prefill_seconds if timing.method == "ar_generate" else prefill_seconds
    return {
        "model": name,
        "method": timing.method,
        "kv_cache": timing.kv_cache,
        "block_size": timing.block_size,
        "batch_size": batch_size,
        "context": context,
        "tokens": written // batch_size,
        "nfe": nfe / batch_size,
        "tpf": written / nfe,
        "tpf_published": written / (nfe - int(result.kv_write_nfe_B.sum())),
        "repetitions": len(tps),
        "decodes_per_repetition": timing.decodes,
        "tps_median": statistics.median(tps),
        "tps_spread": max(tps) - min(tps),
        "ms_per_forward": 1e3 * statistics.median(timing.seconds) / result.forwards,
        "prefill_seconds": statistics.median(prefills),
        "prefill_spread": max(prefills) - min(prefills),
        "peak_memory_mb": timing.peak_memory_mb,
    }


def runs_for_breakdown(vlm: VLM, model: BenchModel, grid: Grid) -> Iterator[tuple[dict[str, Any], Callable[[], DecodeResult]]]:
    """AR and fused one-step decoding at batch 1, at every context: what row it belongs to, and the decode itself."""
    for context in grid.contexts:
        batch = text_prompts(1, context, model.vocabulary, vlm.device)
        room = grid.tokens + 3 * max(grid.block_sizes)
        start = prefill(vlm, batch.context_ids_BP, batch.context_lengths_B, batch, capacity=room, logits="last")
        for timing in _methods(vlm, model.special, batch, start, grid):
            if timing.method == "ar" or (timing.method, timing.kv_cache) == ("one_step", "fused"):
                place = {
                    "context": context,
                    "method": timing.method,
                    "kv_cache": timing.kv_cache,
                    "block_size": timing.block_size,
                }
                yield place, timing.run
