"""Decoding speed over block size: measured against theory. Knows rows of a decoding benchmark only; draws without a display."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from echo_pl.evaluation.plot import PALETTE


def speed_figure(rows: Iterable[dict[str, Any]]) -> Figure:
    """One line of panels per model, one panel per context: speed of fused one-step decoding over AR, by block size and batch.

    Raises:
        ValueError: no row of fused one-step decoding.
    """
    shown = [row for row in rows if row["method"] == "one_step" and row["kv_cache"] == "fused"]
    if not shown:
        raise ValueError("there is nothing to draw: got no rows of fused one-step decoding")
    models = list(dict.fromkeys(row["model"] for row in shown))
    contexts = sorted({row["context"] for row in shown})
    figure = Figure(figsize=(4.2 * len(contexts), 3.8 * len(models)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(models), len(contexts), squeeze=False, sharey="row")
    for line, model in zip(panels, models, strict=True):
        for axes, context in zip(line, contexts, strict=True):
            here = [row for row in shown if (row["model"], row["context"]) == (model, context)]
            for batch_size, colour in zip(sorted({row["batch_size"] for row in here}), cycle(PALETTE), strict=False):
                series = sorted((row for row in here if row["batch_size"] == batch_size), key=lambda row: row["block_size"])
                sizes = [row["block_size"] for row in series]
                axes.plot(sizes, [row["speedup_over_ar"] for row in series], "o-", color=colour, label=f"batch {batch_size}")
                bound = [row["speedup_over_ar"] / row["efficiency"] * row["roofline_efficiency"] for row in series]
                axes.plot(sizes, bound, ":", color=colour, linewidth=1.2, label=f"its roofline, batch {batch_size}")
            one = {row["block_size"]: row["speedup_over_ar"] / row["efficiency"] for row in here}
            axes.plot(sorted(one), [one[size] for size in sorted(one)], "--", color="#888888", label="tpf ratio (theory)")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_xticks(sorted(one), [str(size) for size in sorted(one)])
            ticks = [tick for tick in (0.5, 1, 2, 4, 8, 16, 32) if tick <= max(one.values()) * 1.1]
            axes.set_yticks(ticks, [f"{tick:g}x" for tick in ticks])
            axes.set_title(f"{model}, context {context}", loc="left", fontsize=11)
            axes.set_xlabel("block size L")
            axes.grid(color="#dddddd", linewidth=0.6)
    for line in panels:
        line[0].set_ylabel("tokens per second over AR")
    panels[0][0].legend(frameon=False, fontsize=8)
    return figure
