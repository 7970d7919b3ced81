"""A comparison of a sweep's cells as text, Markdown and a page. Knows figures and what is missing, not where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from markupsafe import Markup

from echo_pl.evaluation.rows import score_variants
from echo_pl.pages.document import render
from echo_pl.pages.tables import MISSING, Table
from echo_pl.sweeps.contrasts import Contrast, Drop
from echo_pl.sweeps.pareto import FASTER, Group, Key, Mean, front, label
from echo_pl.sweeps.pareto_plot import pareto_figure, svg

DIGITS = {"tps": 0, "tps_together": 0, "nfe": 1, "forwards_per_block": 2, "duplicate_word_rate": 4}


@dataclass(frozen=True, kw_only=True)
class SweepComparison:
    """What is shown."""

    title: str
    groups: Sequence[Group]
    qualities: Sequence[str]
    """Scores that fronts are drawn for."""
    columns: Sequence[str]
    """Scores in the table."""
    missing: Sequence[str]
    """What is not there, a line each."""
    level: float
    command: str
    drops: Sequence[Drop] = ()
    contrasts: Sequence[Contrast] = ()
    signatures: Mapping[str, str] = field(default_factory=dict)
    """Variants of the scores."""
    speeds: Sequence[str] = ("tps", "nfe")

    def text(self) -> str:
        """For a terminal."""
        tables = [f"{about}\n\n{table.text()}".lstrip() for about, table in self._tables()]
        return "\n\n".join([*tables, "\n".join([*self._fronts(), *self._missing()])])

    def markdown(self, picture: str) -> str:
        """With the picture beside it."""
        parts = [f"# {self.title}", self._introduction()]
        for about, table in self._tables():
            parts += [*filter(None, [about]), table.markdown()]
        parts.append("\n".join(f"- {line}" for line in self._fronts()))
        parts += [f"![quality against speed]({picture})", "## What is missing", "\n".join(f"- {line}" for line in self._missing())]
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
        """As SVG."""
        return svg(pareto_figure(self.groups, self.qualities, self.speeds))

    def _introduction(self) -> str:
        return (
            f"Means over training seeds with {self.level:.0%} intervals (Student's t); an interval needs two seeds. tps was "
            "measured when each cell was made, so compare it only where the machine was as busy; nfe does not depend on that."
        )

    def _tables(self) -> list[tuple[str, Table]]:
        """Every table with the paragraph above it."""
        tables = [("", Table(self._head(), self._rows()))]
        if self.drops:
            about = f"How much lower than its own AR model, in per cent of it: means over seeds with {self.level:.0%} intervals."
            tables.append((about, self._drops()))
        if self.contrasts:
            about = (
                "Objectives against each other: difference of the scores, reports of all seeds together, with a 95% interval "
                "(reports resampled in pairs); the difference in each seed; p of the paired randomisation test, two-sided, and p "
                "corrected for all tests of this table (Holm). The test is about which reports were drawn; what training seeds do "
                "stands in the seeds' own differences."
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

    def _head(self) -> list[str]:
        return ["model", "seeds", *(name.replace("_", " ") for name in self.columns), "front"]

    def _rows(self) -> list[list[str]]:
        on = {(one.key, speed) for quality in self.qualities for speed in self.speeds for one in front(self.groups, quality, speed)}
        return [
            [
                one.label,
                str(len(one.seeds)),
                *(_cell(one.means.get(name), DIGITS.get(name, 3)) for name in self.columns),
                ", ".join(speed for speed in self.speeds if (one.key, speed) in on) or MISSING,
            ]
            for one in self.groups
        ]

    def _fronts(self) -> list[str]:
        lines = []
        for quality in self.qualities:
            for speed in self.speeds:
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
