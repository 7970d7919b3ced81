"""`echo-pl bench decode`: decoding speed on this machine, timed, tabulated, drawn and logged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from echo_pl.bench import machine
from echo_pl.bench.benchmark import Record, load_benchmark, machine_sentence, report_progress, row_metrics, run_benchmark
from echo_pl.bench.decode import DecodeBenchmark, Row, time_model
from echo_pl.bench.roofline import DATA_SHEETS, QWEN2_5_VL_7B, calculation
from echo_pl.evaluation.plot import png, speed_figure
from echo_pl.pages.tables import MISSING, Column, Table, number, text

_LOGGED = ("tps_median", "tps_spread", "tpf", "tpf_published", "speedup_over_ar", "efficiency", "prefill_seconds", "peak_memory_mb")
_NAMES = {"ar": "AR", "ar_generate": "AR, transformers generate", "base": "base, 2 tokens a step", "one_step": "one step"}
_COLUMNS = (
    Column("model", text("model"), left=True),
    Column("batch", text("batch_size")),
    Column("context", text("context")),
    Column("method", lambda row: _NAMES[row["method"]], left=True),
    Column("KV cache", text("kv_cache"), left=True),
    Column("L", text("block_size")),
    Column("nfe", number("nfe", 0)),
    Column("tpf", number("tpf", 2)),
    Column("tpf pub.", number("tpf_published", 2)),
    Column("tps", number("tps_median", 0)),
    Column("spread", lambda row: MISSING if row["repetitions"] == 1 else f"{row['tps_spread']:.0f}"),
    Column("ms/forward", number("ms_per_forward", 2)),
    Column("x AR", number("speedup_over_ar", 2)),
    Column("efficiency", number("efficiency", 2)),
    Column("roofline", number("roofline_efficiency", 2)),
    Column("of roofline", number("of_roofline", 2)),
    Column("prefill s", number("prefill_seconds", 3)),
    Column("spread", number("prefill_spread", 3)),
    Column("peak MB", number("peak_memory_mb", 0)),
)
_LEGEND = (
    "tps: tokens of the whole batch per second after prefill, median; spread: largest minus smallest repetition. "
    "x AR: tps over our AR decoder at the same batch and context. efficiency: (tps ratio) / (tpf ratio). "
    "roofline: the efficiency if every forward took the time of reading its weights and keys, or of multiplying, "
    "whichever is longer; of roofline: tps over that of the roofline. Both mean little for a model that fits into the processor's "
    "cache. "
    "peak MB: memory of the whole process while the method ran, model, Python and the cache shared by all methods included."
)


def decoding_table(rows: Iterable[Row]) -> Table:
    """Table with one line for each method, cache and size."""
    return Table.from_records(_COLUMNS, rows)


def calculation_table(tokens: int = 160) -> Table:
    """Limits of a 7B model in bfloat16 by the data sheets: arithmetic, nothing is measured."""
    body = []
    for device, limits in DATA_SHEETS.items():
        for samples, context in ((1, 300), (1, 2900), (16, 2900)):
            sizes = {"samples": samples, "context": context, "tokens": tokens}
            for row in calculation(QWEN2_5_VL_7B, limits, block_sizes=(4, 8, 16, 32), **sizes):
                figures = [f"{row[name]:.0f}" for name in ("ar_tps", "one_step_tps")]
                figures += [f"{row[name]:.2f}" for name in ("speedup_over_ar", "efficiency")]
                body.append([device, str(samples), str(context), str(int(row["block_size"])), *figures])
    return Table(["device", "batch", "context", "L", "AR tps", "one step tps", "x AR", "efficiency"], body)


def _report(record: Record) -> Mapping[str, bytes]:
    limits = "; ".join(
        f"{limit['dtype']}: {limit['flops'] / 1e9:.0f} GFLOP/s, memory {limit['bandwidth'] / 1e9:.1f} GB/s"
        for limit in record["machine"]["limits"]
    )
    page = (
        f"# Decoding speed\n\n{machine_sentence(record)}. Limits measured in this run: {limits}.\n\n{_LEGEND}\n\n"
        f"{decoding_table(record['rows']).markdown()}\n"
        "\n## What data sheets allow the 7B (a calculation, not a measurement)\n\n"
        "The language model of Qwen2.5-VL-7B in bfloat16, 160 tokens: every forward takes as long as reading its weights and keys, "
        f"or multiplying, whichever is longer.\n\n{calculation_table().markdown()}\n"
    )
    return {"decode.md": page.encode(), "decode.png": png(speed_figure(record["rows"]))}


def _row_name(row: Row) -> str:
    cache = f"-{row['kv_cache']}" if row["kv_cache"] else ""
    return f"{row['model']}/{row['method']}{cache}-L{row['block_size']}-batch{row['batch_size']}-context{row['context']}"


def bench_decode(overrides: Sequence[str]) -> list[Path]:
    """Time decoding under ``experiments/bench/decode.yaml`` with overrides; return the files written."""
    config = load_benchmark(DecodeBenchmark, "decode", overrides)
    models = {name: config.sizes[name] for name in config.models}

    def measure(record: Record, device: torch.device, save: Callable[[], object]) -> None:
        report_progress("measuring the machine's limits")
        limits = {model.dtype: machine.measure_limits(model.torch_dtype, device) for model in models.values()}
        record["machine"]["limits"] = [vars(limit) for limit in limits.values()]
        for name, model in models.items():
            for rows in time_model(name, model, config, limits[model.dtype], device):
                record["rows"] += rows
                print(decoding_table(rows).text(), flush=True)
                save()

    return run_benchmark(
        config, "decode", measure, _report, lambda record: row_metrics(record["rows"], _row_name, _LOGGED)
    )  # fmt: skip
