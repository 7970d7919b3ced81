"""Tables of the decoding benchmark, and their legend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from echo_pl.bench.breakdown import PARTS
from echo_pl.bench.costs import Cost
from echo_pl.bench.roofline import DATA_SHEETS, QWEN2_5_VL_7B, calculation
from echo_pl.pages.tables import MISSING, Column, Table, number, text

Row = dict[str, Any]
NAMES = {"ar": "AR", "ar_generate": "AR, transformers generate", "base": "base, 2 tokens a step", "one_step": "one step"}
_COLUMNS = (
    Column("model", text("model"), left=True),
    Column("batch", text("batch_size")),
    Column("context", text("context")),
    Column("method", lambda row: NAMES[row["method"]], left=True),
    Column("KV cache", lambda row: row["kv_cache"] or MISSING, left=True),
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
LEGEND = (
    "tps: tokens of the whole batch per second after prefill, median; spread: largest minus smallest repetition. "
    "x AR: tps over our AR decoder at the same batch and context. efficiency: (tps ratio) / (tpf ratio). "
    "roofline: the efficiency if every forward took the time of reading its weights and keys, or of multiplying, "
    "whichever is longer; of roofline: tps over what that would be. Both mean little for a model that fits into the processor's "
    "cache. "
    "peak MB: memory of the whole process while the method ran, model, Python and the cache shared by all methods included."
)


def decoding_table(rows: Iterable[Row]) -> Table:
    """One line for each method, cache and size."""
    return Table.from_records(_COLUMNS, rows)


def breakdown_table(breakdowns: Iterable[Row]) -> Table:
    """Milliseconds per forward by part of the model."""
    headings = ["model", "context", "method", "L", *PARTS, "profiled", "unprofiled"]
    body = [
        [
            row["model"],
            str(row["context"]),
            NAMES[row["method"]] + (f", {row['kv_cache']}" if row["kv_cache"] else ""),
            str(row["block_size"]),
            *(f"{row['ms'][part]:.2f}" for part in (*PARTS, "profiled")),
            MISSING if row["ms_per_forward"] is None else f"{row['ms_per_forward']:.2f}",
        ]
        for row in breakdowns
    ]
    return Table(headings, body, left=(0, 2))


def cost_table(found: Iterable[Cost]) -> Table:
    """Cost of context and vocabulary for one forward."""
    body = [
        [
            cost.model,
            NAMES[cost.method],
            str(cost.block_size),
            f"{cost.what} {cost.smaller} → {cost.larger}",
            f"{cost.forward:+.2f}",
            f"{cost.accounted:+.2f}",
        ]
        for cost in found
    ]
    headings = ["model", "method", "L", "from → to", "forward ms", "of which attention, or head and commit"]
    return Table(headings, body, left=(0, 1, 3))


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
