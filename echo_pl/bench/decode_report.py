"""Speed of every way of decoding on this machine: timed, tabulated, drawn and logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING, DictConfig, OmegaConf

from echo_pl.bench import machine
from echo_pl.bench.benchmark import load_benchmark, log_benchmark, say
from echo_pl.bench.breakdown import breakdown
from echo_pl.bench.costs import costs
from echo_pl.bench.decode import Grid, Row, runs_for_breakdown, time_model
from echo_pl.bench.models import BenchModel
from echo_pl.bench.table import LEGEND, breakdown_table, calculation_table, cost_table, decoding_table
from echo_pl.config.compose import EXPERIMENTS
from echo_pl.evaluation.plot import png, speed_figure
from echo_pl.io.atomic import write_bytes_atomic, write_json, write_text_atomic

_LOGGED = ("tps_median", "tps_spread", "tpf", "tpf_published", "speedup_over_ar", "efficiency", "prefill_seconds", "peak_memory_mb")
CONFIG = EXPERIMENTS / "bench" / "decode.yaml"


@dataclass
class _Schema:
    """Which keys there are, and of what kind: a misspelt one is an error."""

    models: list[str] = MISSING
    block_sizes: list[int] = MISSING
    batch_sizes: list[int] = MISSING
    contexts: list[int] = MISSING
    tokens: int = MISSING
    repetitions: int = MISSING
    generate_repetitions: int = MISSING
    prefill_repetitions: int = MISSING
    least_seconds: float = MISSING
    breakdowns: bool = MISSING
    device: str = MISSING
    threads: int | None = MISSING
    attention: str = MISSING
    compile: bool = MISSING
    out: str = MISSING
    mlflow: str | None = MISSING
    experiment: str = MISSING
    sizes: dict[str, BenchModel] = field(default_factory=dict)


def load_config(overrides: Sequence[str]) -> DictConfig:
    """``experiments/bench/decode.yaml`` with overrides; see :func:`load_benchmark`.

    Raises:
        ValueError: also for packed weights where there are none: compiled, or not on a CPU.
    """
    config = load_benchmark(_Schema, CONFIG, overrides)
    for name in config.models:
        if config.sizes[name].pack_weights and (config.compile or config.device != "cpu"):
            raise ValueError(
                f"sizes.{name}.pack_weights=true is for eager decoding on a CPU, got compile={str(config.compile).lower()} and "
                f"device={config.device}: give sizes.{name}.pack_weights=false, or leave {name} out of models"
            )
    return config


def run_bench(config: DictConfig) -> dict[str, Any]:
    """Time everything, write ``decode.json`` after every place of the grid, so that an interrupted run leaves what it has."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = torch.device(config.device)
    names = [str(name) for name in config.models]
    models: dict[str, BenchModel] = {name: OmegaConf.to_object(config.sizes[name]) for name in names}  # type: ignore[misc]
    options = ("tokens", "repetitions", "generate_repetitions", "prefill_repetitions", "least_seconds", "compile")
    grid = Grid(
        block_sizes=tuple(config.block_sizes),
        batch_sizes=tuple(config.batch_sizes),
        contexts=tuple(config.contexts),
        **{name: config[name] for name in options},
    )
    say("measuring the machine's limits")
    limits = {m.dtype: machine.measure_limits(m.torch_dtype, device) for m in models.values()}
    record: dict[str, Any] = {
        "machine": machine.describe(list(limits.values()), device),
        "config": OmegaConf.to_container(config),
        "rows": [],
        "breakdowns": [],
    }
    out = Path(config.out)
    for name, model in models.items():
        for rows in time_model(name, model, grid, limits[model.dtype], device, config.attention, say):
            record["rows"] += rows
            print(decoding_table(rows).text(), flush=True)
            write_json(out / "decode.json", record)
        if config.breakdowns and (device.type != "cpu" or config.compile):
            say(f"{name}: no breakdown, which is made on a CPU without compile")
        elif config.breakdowns:
            say(f"{name}: where the time goes")
            found = _breakdowns(name, model, grid, config, record["rows"])
            record["breakdowns"] += found
            print(breakdown_table(found).text(), flush=True)
    write_json(out / "decode.json", record)
    return record


def _breakdowns(name: str, model: BenchModel, grid: Grid, config: DictConfig, rows: Sequence[Row]) -> list[Row]:
    vlm = model.build(torch.device("cpu"), config.attention)
    found = []
    for place, run in runs_for_breakdown(vlm, model, grid):
        timed = next(
            (row for row in rows if row["model"] == name and row["batch_size"] == 1 and place.items() <= row.items()), None
        )
        run()
        found.append(
            {"model": name, **place, "ms": breakdown(vlm, run), "ms_per_forward": timed["ms_per_forward"] if timed else None}
        )
    return found


def write_report(record: dict[str, Any], out: Path) -> list[Path]:
    """The table and the picture beside ``decode.json``."""
    facts = record["machine"]
    limits = "; ".join(
        f"{limit['dtype']}: {limit['flops'] / 1e9:.0f} GFLOP/s, memory {limit['bandwidth'] / 1e9:.1f} GB/s"
        for limit in facts["limits"]
    )
    text = (
        "# Decoding speed\n\n"
        f"{facts['processor']}, {facts['threads']} threads of {facts['cores']} cores, device {facts['device']}, "
        f"torch {facts['packages']['torch']}. Limits measured in this run: {limits}.\n\n{LEGEND}\n\n"
        f"{decoding_table(record['rows']).markdown()}\n"
    )
    if record["breakdowns"]:
        text += (
            "\n## Milliseconds per forward, batch 1\n\n"
            "One more decode under torch's profiler, which makes it slower (profiled against unprofiled). Python is what is not in "
            "an operator, the profiler's own time included.\n\n"
            f"{breakdown_table(record['breakdowns']).markdown()}\n"
            "\n## What a longer context and a larger vocabulary cost\n\n"
            "The difference between two forwards of the tables above (unprofiled), and that of the parts which should explain it "
            "(profiled). A vocabulary has a row where two models differ in nothing else.\n\n"
            f"{cost_table(costs(record['breakdowns'], record['config']['sizes'])).markdown()}\n"
        )
    text += (
        "\n## What data sheets allow the 7B (a calculation, not a measurement)\n\n"
        "The language model of Qwen2.5-VL-7B in bfloat16, 160 tokens: every forward takes as long as reading its weights and keys, "
        f"or multiplying, whichever is longer.\n\n{calculation_table().markdown()}\n"
    )
    picture = png(speed_figure(record["rows"]))
    return [write_text_atomic(out / "decode.md", text), write_bytes_atomic(out / "decode.png", picture)]


def metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Every figure under ``<model>/<method>/<figure>``."""
    found: dict[str, float] = {}
    for row in rows:
        cache = f"-{row['kv_cache']}" if row["kv_cache"] else ""
        place = f"{row['method']}{cache}-L{row['block_size']}-batch{row['batch_size']}-context{row['context']}"
        found |= {f"{row['model']}/{place}/{figure}": float(row[figure]) for figure in _LOGGED if row[figure] is not None}
    return found


def bench_decode(overrides: Sequence[str]) -> list[Path]:
    """Time decoding as the benchmark's YAML with overrides asks for; return the files written."""
    config = load_config(overrides)
    record = run_bench(config)
    out = Path(config.out)
    files = [out / "decode.json", *write_report(record, out)]
    if config.mlflow is not None:
        log_benchmark(config, "decode", record["machine"], metrics(record["rows"]), files)
    return files
