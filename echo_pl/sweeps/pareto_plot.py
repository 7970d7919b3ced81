"""Quality against speed for the groups of a sweep, with intervals over seeds and the Pareto front. Knows groups only."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from echo_pl.evaluation.plot import PALETTE
from echo_pl.sweeps.pareto import FASTER, Group, front

SPEEDS = {"tps": "tokens per second, one study at a time", "nfe": "forwards per report", "forwards_per_block": "forwards per block"}
_MARKERS = "oDs^vPX*<>hp"
_INK, _GRID = "#333333", "#dddddd"


def pareto_figure(groups: Sequence[Group], qualities: Sequence[str], speeds: Sequence[str]) -> Figure:
    """A panel for every quality and speed; faster is always to the right.

    Raises:
        ValueError: no group has both scores of any panel.
    """
    panels = [(quality, speed) for quality in qualities for speed in speeds]
    if not any(quality in one.means and speed in one.means for one in groups for quality, speed in panels):
        raise ValueError(f"there is nothing to draw: no group has one of {list(qualities)} and one of {list(speeds)}")
    figure = Figure(figsize=(6.0 * len(speeds), 4.3 * len(qualities)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(qualities), len(speeds), squeeze=False)
    for (quality, speed), one in zip(panels, axes.flat, strict=True):
        _panel(one, groups, quality, speed)
    return figure


def svg(figure: Figure) -> str:
    """The figure as a picture that keeps its words; the same figure gives the same bytes."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "echo_pl"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _panel(axes: Axes, groups: Sequence[Group], quality: str, speed: str) -> None:
    shown = [one for one in groups if quality in one.means and speed in one.means]
    names = list(dict.fromkeys(one.key[:2] for one in groups))
    best = front(shown, quality, speed)
    axes.plot(
        [one.means[speed].value for one in best], [one.means[quality].value for one in best], color=_INK, linewidth=1.0,
        linestyle="--", zorder=1, label="Pareto front",
    )  # fmt: skip
    for one in shown:
        kind = names.index(one.key[:2])
        x, y = one.means[speed], one.means[quality]
        spread = None if y.low != y.low else [[y.value - y.low], [y.high - y.value]]
        axes.errorbar(
            x.value, y.value, yerr=spread, color=PALETTE[kind % len(PALETTE)], marker=_MARKERS[kind % len(_MARKERS)],
            markersize=9 if one in best else 6, markerfacecolor=None if one in best else "white", linewidth=0.9, capsize=2,
        )  # fmt: skip
        axes.annotate(one.label, (x.value, y.value), xytext=(6, 5), textcoords="offset points", fontsize=7.5, color=_INK)
    axes.set_xlabel(SPEEDS[speed] + ("" if FASTER[speed] else " (fewer to the right)"), color=_INK)
    axes.set_ylabel(quality.replace("_", " "), color=_INK)
    if shown and min(one.means[speed].value for one in shown) > 0:
        axes.set_xscale("log")
        for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            axis(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else ""))  # plain figures, and few
    if not FASTER[speed]:
        axes.invert_xaxis()
    axes.margins(x=0.14)  # room for the names
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
    axes.legend(frameon=False, fontsize=8, loc="best")
