"""Rows of a decoding benchmark as a table for a terminal or in Markdown, and what they say in words. Knows rows only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from echo_pl.bench.breakdown import PARTS
from echo_pl.bench.costs import Cost
from echo_pl.bench.roofline import DATA_SHEETS, QWEN2_5_VL_7B, calculation

Row = dict[str, Any]
NAMES = {"ar": "AR", "ar_generate": "AR, transformers generate", "base": "base, 2 tokens a step", "one_step": "one step"}
_COLUMNS: list[tuple[str, Callable[[Row], str]]] = [
    ("model", lambda r: r["model"]),
    ("batch", lambda r: str(r["batch_size"])),
    ("context", lambda r: str(r["context"])),
    ("method", lambda r: NAMES[r["method"]]),
    ("KV cache", lambda r: r["kv_cache"] or "–"),
    ("L", lambda r: str(r["block_size"])),
    ("nfe", lambda r: f"{r['nfe']:.0f}"),
    ("tpf", lambda r: f"{r['tpf']:.2f}"),
    ("tpf pub.", lambda r: f"{r['tpf_published']:.2f}"),
    ("tps", lambda r: f"{r['tps_median']:.0f}"),
    ("spread", lambda r: "–" if r["repetitions"] == 1 else f"{r['tps_spread']:.0f}"),
    ("ms/forward", lambda r: f"{r['ms_per_forward']:.2f}"),
    ("x AR", lambda r: f"{r['speedup_over_ar']:.2f}"),
    ("efficiency", lambda r: f"{r['efficiency']:.2f}"),
    ("roofline", lambda r: "–" if r["roofline_efficiency"] is None else f"{r['roofline_efficiency']:.2f}"),
    ("of roofline", lambda r: "–" if r["of_roofline"] is None else f"{r['of_roofline']:.2f}"),
    ("prefill s", lambda r: f"{r['prefill_seconds']:.3f}"),
    ("spread", lambda r: f"{r['prefill_spread']:.3f}"),
    ("peak MB", lambda r: "–" if r["peak_memory_mb"] is None else f"{r['peak_memory_mb']:.0f}"),
]
LEGEND = (
    "tps: tokens of the whole batch per second after prefill, median; spread: largest minus smallest repetition. "
    "x AR: tps over our AR decoder at the same batch and context. efficiency: (tps ratio) / (tpf ratio). "
    "roofline: the efficiency if every forward took the time of reading its weights and keys, or of multiplying, "
    "whichever is longer; of roofline: tps over what that would be. Both mean little for a model that fits into the processor's "
    "cache. "
    "peak MB: memory of the whole process while the method ran, model, Python and the cache shared by all methods included."
)


def text_table(rows: Iterable[Row]) -> str:
    """For a terminal."""
    return aligned([[cell(row) for _, cell in _COLUMNS] for row in rows], [name for name, _ in _COLUMNS])


def markdown_table(rows: Iterable[Row]) -> str:
    """In Markdown."""
    return markdown([[cell(row) for _, cell in _COLUMNS] for row in rows], [name for name, _ in _COLUMNS])


def breakdown_table(breakdowns: Iterable[Row]) -> str:
    """Milliseconds per forward by part of the model, in Markdown."""
    headings = ["model", "context", "method", "L", *PARTS, "profiled", "unprofiled"]
    body = [
        [
            row["model"],
            str(row["context"]),
            NAMES[row["method"]] + (f", {row['kv_cache']}" if row["kv_cache"] else ""),
            str(row["block_size"]),
            *(f"{row['ms'][part]:.2f}" for part in (*PARTS, "profiled")),
            "–" if row["ms_per_forward"] is None else f"{row['ms_per_forward']:.2f}",
        ]
        for row in breakdowns
    ]
    return markdown(body, headings)


def cost_table(found: Iterable[Cost]) -> str:
    """What context and vocabulary cost a forward, in Markdown."""
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
    return markdown(body, ["model", "method", "L", "from → to", "forward ms", "of which attention, or head and commit"])


def calculation_table(tokens: int = 160) -> str:
    """What data sheets allow a 7B model in bfloat16, in Markdown: arithmetic, nothing was measured."""
    body = []
    for device, limits in DATA_SHEETS.items():
        for samples, context in ((1, 300), (1, 2900), (16, 2900)):
            sizes = {"samples": samples, "context": context, "tokens": tokens}
            for row in calculation(QWEN2_5_VL_7B, limits, block_sizes=(4, 8, 16, 32), **sizes):
                figures = [f"{row[name]:.0f}" for name in ("ar_tps", "one_step_tps")]
                figures += [f"{row[name]:.2f}" for name in ("speedup_over_ar", "efficiency")]
                body.append([device, str(samples), str(context), str(int(row["block_size"])), *figures])
    return markdown(body, ["device", "batch", "context", "L", "AR tps", "one step tps", "x AR", "efficiency"])


def markdown(body: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    """Lines of cells under headings, in Markdown."""
    lines = [headings, ["---"] * len(headings), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def aligned(body: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    """Lines of cells under headings, in columns."""
    lines = [headings, *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
