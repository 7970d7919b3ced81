"""Comparison of a sweep's cells as text, Markdown and a page, with a plot of quality against speed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from echo_pl.evaluation.plot import PALETTE
from echo_pl.evaluation.rows import score_variants
from echo_pl.pages.document import render
from echo_pl.pages.tables import MISSING, Table
from echo_pl.sweeps.contrasts import Contrast, Drop
from echo_pl.sweeps.pareto import FASTER, Group, Key, Mean, front, label

SPEEDS = {"tps": "tokens per second, one study at a time", "nfe": "forwards per report"}
_MARKERS = "oDs^vPX*<>hp"
_INK, _GRID = "#333333", "#dddddd"
DIGITS = {"tps": 0, "tps_together": 0, "nfe": 1, "forwards_per_block": 2, "duplicate_word_rate": 4}


@dataclass(frozen=True, kw_only=True)
class SweepComparison:
    """Content of the comparison."""

    title: str
    groups: Sequence[Group]
    qualities: Sequence[str]
    """Scores with a Pareto front."""
    columns: Sequence[str]
    """Scores in the table."""
    missing: Sequence[str]
    """A line for each missing cell or test."""
    level: float
    command: str
    drops: Sequence[Drop] = ()
    contrasts: Sequence[Contrast] = ()
    signatures: Mapping[str, str] = field(default_factory=dict)
    """Variants of the scores."""

    def text(self) -> str:
        """Comparison for a terminal."""
        tables = [f"{about}\n\n{table.text()}".lstrip() for about, table in self._tables()]
        return "\n\n".join([*tables, "\n".join([*self._fronts(), *self._missing()])])

    def markdown(self, picture: str) -> str:
        """Comparison in Markdown, beside the picture."""
        parts = [f"# {self.title}", self._introduction()]
        for about, table in self._tables():
            parts += [*filter(None, [about]), table.markdown()]
        parts.append("\n".join(f"- {line}" for line in self._fronts()))
        parts += [f"![quality against speed]({picture})", "## Missing", "\n".join(f"- {line}" for line in self._missing())]
        parts += [f"<sub>{score_variants(self.signatures)}</sub>"] if self.signatures else []
        return "\n\n".join([*parts, "## How to reproduce", f"```sh\n{self.command}\n```"]) + "\n"

    def page(self) -> str:
        """Comparison as one HTML page."""
        return render(
            "sweep.html",
            title=self.title,
            introduction=self._introduction(),
            tables=self._tables(),
            fronts=self._fronts(),
            picture=Markup(self.picture()),
            missing=self._missing(),
            command=self.command,
            variants=score_variants(self.signatures) if self.signatures else "",
        )

    def picture(self) -> str:
        """Plot as SVG."""
        return svg(pareto_figure(self.groups, self.qualities))

    def _introduction(self) -> str:
        return (
            f"Means over training seeds with {self.level:.0%} intervals (Student's t); an interval needs two seeds. tps was "
            "measured when each cell was made, so compare it only under the same load of the machine; nfe does not depend on it."
        )

    def _tables(self) -> list[tuple[str, Table]]:
        """Every table with the paragraph above it."""
        headings = ["model", "seeds", *(name.replace("_", " ") for name in self.columns), "front"]
        tables = [("", Table(headings, self._rows()))]
        if self.drops:
            about = f"How much lower than its own AR model, in per cent of it: means over seeds with {self.level:.0%} intervals."
            tables.append((about, self._drops()))
        if self.contrasts:
            about = (
                "Objectives against each other: difference of the scores, reports of all seeds together, with a 95% interval "
                "(reports resampled in pairs); the difference in each seed; p of the paired randomisation test, two-sided, and p "
                "corrected for all tests of this table (Holm). The test covers the choice of reports; the differences by seed show "
                "the variation over training seeds."
            )
            tables.append((about, self._contrasts()))
        return tables

    def _drops(self) -> Table:
        names = [*dict.fromkeys(one.name for one in self.drops)]
        headings = ["model", *(f"{name.replace('_', ' ')}, % lower" for name in names)]
        rows = []
        for key, of in groupby(self.drops, key=lambda one: one.key):
            found = {one.name: one.mean for one in of}
            rows.append([label(key), *(_cell(found.get(name), 1, 100.0) for name in names)])
        return Table(headings, rows)

    def _contrasts(self) -> Table:
        rows = []
        for one in self.contrasts:
            c = one.comparison
            rows.append(
                [
                    f"{label(one.first)} against {_objective(one.second)}",
                    one.name.replace("_", " "),
                    f"{c.difference:+.4f} [{c.low:+.4f}, {c.high:+.4f}]",
                    " ".join(f"{value:+.4f}" for value in one.by_seed),
                    f"{c.p:.4f}",
                    f"{one.corrected:.4f}",
                ]
            )
        return Table(["objectives", "score", "difference", "by seed", "p", "p (Holm)"], rows)

    def _rows(self) -> list[list[str]]:
        on = {(one.key, speed) for quality in self.qualities for speed in SPEEDS for one in front(self.groups, quality, speed)}
        return [
            [
                one.label,
                str(len(one.seeds)),
                *(_cell(one.means.get(name), DIGITS.get(name, 3)) for name in self.columns),
                ", ".join(speed for speed in SPEEDS if (one.key, speed) in on) or MISSING,
            ]
            for one in self.groups
        ]

    def _fronts(self) -> list[str]:
        lines = []
        for quality in self.qualities:
            for speed in SPEEDS:
                way = "most" if FASTER[speed] else "fewest"
                names = " < ".join(one.label for one in front(self.groups, quality, speed)) or "no group has both"
                lines.append(f"Pareto front of {quality} against {speed} ({way} last): {names}")
        return lines

    def _missing(self) -> list[str]:
        return list(self.missing) or ["Nothing: every cell that was planned has its scores."]


def _cell(mean: Mean | None, digits: int, scale: float = 1.0) -> str:
    if mean is None:
        return MISSING
    value, low, high = (f"{number * scale:.{digits}f}" for number in (mean.value, mean.low, mean.high))
    return value if mean.low != mean.low else f"{value} [{low}, {high}]"


def _objective(key: Key) -> str:
    return label((key[0], key[1], 0)).partition(",")[0]


def pareto_figure(groups: Sequence[Group], qualities: Sequence[str]) -> Figure:
    """A panel for every quality and speed; faster is always to the right.

    Raises:
        ValueError: no group has both scores of any panel.
    """
    panels = [(quality, speed) for quality in qualities for speed in SPEEDS]
    if not any(quality in one.means and speed in one.means for one in groups for quality, speed in panels):
        raise ValueError(f"there is nothing to draw: no group has one of {list(qualities)} and one of {list(SPEEDS)}")
    figure = Figure(figsize=(6.0 * len(SPEEDS), 4.3 * len(qualities)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(qualities), len(SPEEDS), squeeze=False)
    for (quality, speed), one in zip(panels, axes.flat, strict=True):
        _panel(one, groups, quality, speed)
    return figure


def svg(figure: Figure) -> str:
    """Figure as SVG that keeps its text; the same figure gives the same bytes."""
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
            axis(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else ""))  # few, plain
    if not FASTER[speed]:
        axes.invert_xaxis()
    axes.margins(x=0.14)  # space for the labels
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)
    axes.legend(frameon=False, fontsize=8, loc="best")
