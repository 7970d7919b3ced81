"""Plots of the comparison (quality against speed) and of the decoding benchmark (speed by block size).

The palette of Okabe and Ito is readable for colour-blind readers; marker shapes repeat its information.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import compress, cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from echo_pl.evaluation.rows import Row, method_label, speed_over_ar

QUALITIES = {"finding_f1": "finding F1", "valid_sentences": "valid sentences"}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_COLOURS = {"ar": "#000000", "base": "#0072B2", "base_one_step": "#D55E00", "distilled": "#009E73"}
_MARKERS = {"ar": "s", "base": "o", "base_one_step": "X", "distilled": "D"}
Point = tuple[Row, float]
"""A row and its speed."""

_INK, _GRID = "#333333", "#dddddd"
# Offsets of a label from its point, in points, tried in this order until the label covers nothing.
_OFFSETS = [
    (sign_x * distance if sign_x else 0, sign_y * distance, ("right", "center", "left")[sign_x + 1])
    for distance in (9, 13, 18, 24, 33, 43, 54, 66)
    for sign_x, sign_y in ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))
]


def quality_speed_figure(rows: Iterable[Row]) -> Figure:
    """Draw finding F1 and valid sentences over speed; one line of panels per batch size.

    Speed is tps as a multiple of AR at the same batch size (on a log scale), or plain tps without an AR row.

    Raises:
        ValueError: no rows.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("there is nothing to draw: got no rows")
    ratios = speed_over_ar(rows)
    relative = None not in ratios
    speeds = [ratio if relative and ratio is not None else row["tps"] for row, ratio in zip(rows, ratios, strict=True)]
    sizes = sorted({row["batch_size"] for row in rows})
    figure = Figure(figsize=(11.5, 4.3 * len(sizes)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(sizes), len(QUALITIES), squeeze=False)
    drawn = []
    for line, size in zip(panels, sizes, strict=True):
        for axes, (name, title) in zip(line, QUALITIES.items(), strict=True):
            shown = [row["batch_size"] == size and row[name] is not None for row in rows]
            points = list(compress(zip(rows, speeds, strict=True), shown))
            _points(axes, points, name)
            _frame(axes, f"{title}, batch {size}", points, name, relative=relative)
            drawn.append((axes, points, name))
    figure.canvas.draw()  # labels are placed against the final layout
    for axes, points, name in drawn:
        _label(axes, points, name)
    return figure


def _frame(axes: Axes, title: str, points: Sequence[Point], name: str, *, relative: bool) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    lowest = min((row[name] for row, _ in points), default=0.0)
    axes.set_ylim(max(lowest - 0.15, -0.05), 1.06)
    axes.set_xscale("log")
    if points:
        axes.set_xlim(min(speed for _, speed in points) / 1.4, max(speed for _, speed in points) * 2.3)
    axes.set_xlabel("speed: tokens per second over AR" if relative else "speed: tokens per second", color=_INK)
    if relative:
        low, high = axes.get_xlim()
        ticks = [tick for tick in (0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16) if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
        axes.axvline(1, color=_GRID, linewidth=1.2, zorder=0)
        axes.minorticks_off()
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)


def _points(axes: Axes, points: Sequence[Point], name: str) -> None:
    """Markers, and a thin line through the block sizes of one method."""
    for series in _series(points):
        method = series[0][0]["method"]
        axes.plot(
            [speed for _, speed in series],
            [row[name] for row, _ in series],
            color=_COLOURS[method],
            marker=_MARKERS[method],
            markersize=8,
            markeredgecolor="white",
            linewidth=0.9,
            alpha=0.9,
        )


def _series(points: Sequence[Point]) -> list[list[Point]]:
    """Points of one method, objective and cache together, by rising block size."""
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for row, speed in points:
        groups.setdefault((row["method"], row["objective"], row["kv_cache"]), []).append((row, speed))
    return [sorted(group, key=lambda point: point[0]["block_size"]) for group in groups.values()]


def _label(axes: Axes, points: Sequence[Point], name: str) -> None:
    """Write each point's name beside it, at the first offset that covers no point and no other label."""
    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    labelled = _labels(points)
    taken = [_around(axes.transData.transform((speed, row[name]))) for row, speed, _ in labelled]
    for index, (row, speed, text) in enumerate(labelled):
        others = taken[:index] + taken[index + 1 :]
        for attempt, (x, y, side) in enumerate(_OFFSETS, start=1):
            note = axes.annotate(
                text,
                (speed, row[name]),
                xytext=(x, y),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=8.5,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                color=_COLOURS[row["method"]],
                arrowprops={"arrowstyle": "-", "color": _GRID, "linewidth": 0.8, "shrinkB": 4} if abs(y) > 12 else None,
            )
            note.update_positions(renderer)
            box = Text.get_window_extent(note, renderer)  # box of the words alone, without the line to the point
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            free = inside and not any(box.overlaps(other) for other in others)
            if free or attempt == len(_OFFSETS):
                taken.append(box)
                break
            note.remove()


def _around(place: Any) -> Bbox:
    x, y = place
    return Bbox.from_extents(x - 6, y - 6, x + 6, y + 6)


def _labels(points: Sequence[Point]) -> list[tuple[Row, float, str]]:
    """Shortest labels that distinguish the points: a series is named once, block sizes and caches only if they vary."""
    sizes = {row["block_size"] for row, _ in points if row["method"] != "ar"}
    labelled = []
    for series in _series(points):
        for index, (row, speed) in enumerate(series):
            caches = {other["kv_cache"] for other, _ in points if other["method"] == row["method"]}
            parts = [method_label(row)] if index == 0 else []
            if index == 0 and len(caches) > 1:
                parts.append(row["kv_cache"] or "no cache")
            if len(sizes) > 1 and row["method"] != "ar":
                parts.append(f"L={row['block_size']}")
            labelled.append((row, speed, ", ".join(parts)))
    return labelled


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


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
