"""Decoding speed: every method from the same prefill, interleaved, on the same weights.

nfe, tpf and tps are those of docs/explain/method.md, "Decoding", over a fixed number of tokens: nothing ends a report. Random
weights are uncertain everywhere, so that at a threshold the multi-step base would commit one token per forward. It gets
``denoising_steps`` = L / 2 instead: two tokens per forward, as the paper reports of its base (1.9 to 2.1).

Shapes: B batch, L block size.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from omegaconf import MISSING

from echo_pl.backbone.attention import AttentionBackend
from echo_pl.backbone.stock_generate import stock_generate
from echo_pl.backbone.vlm import VLM
from echo_pl.bench.benchmark import Benchmark, report_progress
from echo_pl.bench.machine import Limits
from echo_pl.bench.models import BenchModel, text_prompts
from echo_pl.bench.roofline import least_autoregressive, least_one_step
from echo_pl.io.memory import peak_memory_gb, restart_peak_memory
from echo_pl.sampling import AutoregressiveSampler, BlockSampler, DecodeConfig, LoopStop
from echo_pl.sampling.prefill import prefill
from echo_pl.structs import Batch, DecodeResult, SpecialTokens

_NO_LOOP_STOP = LoopStop(enabled=False)
_KV_CACHES: tuple[Literal["vanilla", "fused"], ...] = ("vanilla", "fused")
Row = dict[str, Any]
"""One method at one point of the grid, as in ``outputs/bench/decode.json``."""


@dataclass(kw_only=True)
class DecodeBenchmark(Benchmark):
    """Grid of what is timed; the comments of ``experiments/bench/decode.yaml`` say what each key means."""

    block_sizes: list[int] = MISSING
    batch_sizes: list[int] = MISSING
    tokens: int = MISSING
    generate_repetitions: int = MISSING
    prefill_repetitions: int = MISSING
    least_seconds: float = MISSING
    attention: str = MISSING
    compile: bool = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("block_sizes", "batch_sizes", "contexts"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be positive numbers, got {list(getattr(self, name))}")
        for L in self.block_sizes:
            if L % 2 and L > 1:
                raise ValueError(f"block sizes must be even, as the base commits two tokens a step, got {L}")
            if self.tokens % L:
                raise ValueError(f"tokens must be a multiple of every block size, got {self.tokens} and block size {L}")
        if self.prefill_repetitions < 1 or self.generate_repetitions < 0:
            raise ValueError("prefill_repetitions must be at least 1, generate_repetitions at least 0")
        if self.tokens < 2:
            raise ValueError(f"tokens must be at least 2, as the first one comes out of prefill, got {self.tokens}")
        if self.least_seconds < 0:
            raise ValueError(f"least_seconds must not be negative, got {self.least_seconds}")
        if self.attention not in get_args(AttentionBackend):
            raise ValueError(f"attention must be one of {get_args(AttentionBackend)}, got {self.attention!r}")
        for name in self.models:
            if self.sizes[name].pack_weights and (self.compile or self.device != "cpu"):
                raise ValueError(
                    f"sizes.{name}.pack_weights=true is for eager decoding on a CPU, got compile={str(self.compile).lower()} and "
                    f"device={self.device}: give sizes.{name}.pack_weights=false, or leave {name} out of models"
                )


@dataclass(kw_only=True)
class Timing:
    """One method's repetitions."""

    method: str
    run: Callable[[], DecodeResult]
    repetitions: int
    kv_cache: str | None = None
    block_size: int = 1
    decodes: int = 1
    """Decodes in one repetition."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of one decode, the mean of each repetition."""
    prefill_seconds: list[float] = field(default_factory=list)
    result: DecodeResult | None = None
    peak_memory_mb: float | None = None

    def warm_up(self, device: torch.device, least_seconds: float) -> None:
        """Decode twice without timing: the first makes buffers and shows the memory, the second how long a decode takes.

        Memory is measured here because restarting the peak returns all free memory, which would disturb the timing.
        """
        restarted = restart_peak_memory(device)
        self.run()
        if restarted:  # otherwise the system reports the peak of the whole process
            self.peak_memory_mb = 1e3 * peak_memory_gb(device)
        self.result = self.run()
        self.decodes = max(1, math.ceil(least_seconds / (self.result.prefill_seconds + self.result.decode_seconds)))

    def repeat(self) -> None:
        """Decode and record the time."""
        results = [self.run() for _ in range(self.decodes)]
        self.seconds.append(statistics.fmean(result.decode_seconds for result in results))
        self.prefill_seconds.append(statistics.fmean(result.prefill_seconds for result in results))


def time_model(name: str, model: BenchModel, config: DecodeBenchmark, limits: Limits, device: torch.device) -> Iterator[list[Row]]:
    """Build a model and time all methods; yield the rows of one batch size and context at a time."""
    vlm = model.build(device, config.attention)  # type: ignore[arg-type]
    for batch_size in config.batch_sizes:
        for context in config.contexts:
            report_progress(f"{name}, batch {batch_size}, context {context}")
            batch = text_prompts(batch_size, context, model.vocabulary, device)
            timings, prefill_seconds = _time_methods(vlm, model.special, batch, config)
            place = {"model": name, "batch_size": batch_size, "context": context, "dtype": model.dtype}
            rows = [place | _measured(timing, batch_size, prefill_seconds) for timing in timings]
            for row in rows:
                row |= _compared(row, rows[0], model, config, limits)
            yield rows


def _time_methods(vlm: VLM, special: SpecialTokens, batch: Batch, config: DecodeBenchmark) -> tuple[list[Timing], list[float]]:
    capacity = config.tokens + 3 * max(config.block_sizes)
    prefill_seconds = []
    for _ in range(1 + config.prefill_repetitions):
        start = prefill(vlm, batch.context_ids_BP, batch.context_lengths_B, batch, capacity=capacity, logits="last")
        prefill_seconds.append(start.seconds)
    options: dict[str, Any] = {"loop_stop": _NO_LOOP_STOP, "compile": config.compile}
    autoregressive = AutoregressiveSampler(vlm, special, config.tokens, **options)
    timings = [
        Timing(method="ar", run=lambda: autoregressive.generate(batch, start=start), repetitions=config.repetitions),
        Timing(method="ar_generate", run=lambda: _generate(vlm, batch, config.tokens), repetitions=config.generate_repetitions),
    ]
    for L in config.block_sizes:
        for method, steps in (("base", max(1, L // 2)), ("one_step", 1)):
            for kv_cache in _KV_CACHES:
                decode = DecodeConfig(
                    block_size=L, max_response_tokens=config.tokens, denoising_steps=steps, kv_cache=kv_cache, **options
                )  # fmt: skip
                sampler = BlockSampler(vlm, special, decode)
                run = lambda sampler=sampler: sampler.generate(batch, start=start)  # noqa: E731
                timings.append(Timing(method=method, kv_cache=kv_cache, block_size=L, run=run, repetitions=config.repetitions))
    for timing in timings:
        if timing.repetitions:
            timing.warm_up(vlm.device, config.least_seconds)
    for round_ in range(max(timing.repetitions for timing in timings)):
        for timing in timings:
            if round_ < timing.repetitions:
                timing.repeat()
    return [timing for timing in timings if timing.seconds], prefill_seconds[1:]


def _generate(vlm: VLM, batch: Batch, tokens: int) -> DecodeResult:
    """Decode by the library's ``generate``."""
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


def _measured(timing: Timing, batch_size: int, prefill_seconds: list[float]) -> Row:
    result = timing.result
    assert result is not None
    written, nfe = int(result.written_B.sum()), int(result.nfe_B.sum())
    tps = [written / seconds for seconds in timing.seconds]
    # The library's generate has its own prefill; all others start from one that was timed by itself.
    prefills = timing.prefill_seconds if timing.method == "ar_generate" else prefill_seconds
    return {
        "method": timing.method,
        "kv_cache": timing.kv_cache,
        "block_size": timing.block_size,
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


def _compared(row: Row, ar: Row, model: BenchModel, config: DecodeBenchmark, limits: Limits) -> Row:
    """Figures of a row relative to our AR decoder and to the roofline."""
    sizes = {"samples": row["batch_size"], "context": row["context"], "tokens": config.tokens}
    speedup, ideal_speedup = row["tps_median"] / ar["tps_median"], row["tpf"] / ar["tpf"]
    least_ar = least_autoregressive(model.shape, limits, **sizes)
    least = efficiency = None
    if row["method"] == "ar":
        least = least_ar
    elif (row["method"], row["kv_cache"]) == ("one_step", "fused"):
        least = least_one_step(model.shape, limits, block_size=row["block_size"], **sizes)
        efficiency = least_ar / least / ideal_speedup
    roofline_tps = None if least is None else row["batch_size"] * config.tokens / least
    return {
        "compiled": config.compile and row["method"] != "ar_generate",
        "speedup_over_ar": speedup,
        "efficiency": speedup / ideal_speedup,
        "roofline_efficiency": efficiency,
        "roofline_tps": roofline_tps,
        "of_roofline": None if roofline_tps is None else row["tps_median"] / roofline_tps,
    }
