"""A comparison of a sweep's cells as text, Markdown and a page. Knows groups and what is missing, not where they come from."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from echo_pl.evaluation.document import html_document
from echo_pl.evaluation.pareto import FASTER, Group, Mean, front
from echo_pl.evaluation.pareto_plot import pareto_figure, svg
from echo_pl.evaluation.table import MISSING

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
    speeds: Sequence[str] = ("tps", "nfe")

    def text(self) -> str:
        """For a terminal."""
        rows = [self._head(), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip() for row in rows]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *self._fronts(), *self._missing()])

    def markdown(self, picture: str) -> str:
        """With the picture beside it."""
        head = self._head()
        table = [f"| {' | '.join(head)} |", f"| :-- |{' --: |' * (len(head) - 1)}"]
        table += [f"| {' | '.join(row)} |" for row in self._rows()]
        parts = [f"# {self.title}", self._introduction(), "\n".join(table), "\n".join(f"- {line}" for line in self._fronts())]
        parts += [f"![quality against speed]({picture})", "## What is missing", "\n".join(f"- {line}" for line in self._missing())]
        return "\n\n".join([*parts, "## How to reproduce", f"```sh\n{self.command}\n```"]) + "\n"

    def page(self) -> str:
        """All in one file."""
        head = "".join(f"<th{_left(i)}>{html.escape(cell)}</th>" for i, cell in enumerate(self._head()))
        body = "".join(
            f"<tr>{''.join(f'<td{_left(i)}>{html.escape(cell)}</td>' for i, cell in enumerate(row))}</tr>" for row in self._rows()
        )
        return html_document(
            self.title,
            f"<h1>{html.escape(self.title)}</h1><p>{html.escape(self._introduction())}</p>"
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
            f'{_list(self._fronts())}<div class="plot wide">{self.picture()}</div>'
            f"<h2>What is missing</h2>{_list(self._missing())}<h2>How to reproduce</h2><pre>{html.escape(self.command)}</pre>",
        )

    def picture(self) -> str:
        """As SVG."""
        return svg(pareto_figure(self.groups, self.qualities, self.speeds))

    def _introduction(self) -> str:
        return (
            f"Means over training seeds with {self.level:.0%} intervals (Student's t); an interval needs two seeds. tps was "
            "measured when each cell was made, so compare it only where the machine was as busy; nfe does not depend on that."
        )

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


def _cell(mean: Mean | None, digits: int) -> str:
    if mean is None:
        return MISSING
    value = f"{mean.value:.{digits}f}"
    return value if mean.low != mean.low else f"{value} [{mean.low:.{digits}f}, {mean.high:.{digits}f}]"


def _left(column: int) -> str:
    return ' class="left"' if column == 0 else ""


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"
