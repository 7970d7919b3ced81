"""A scored run to be read: every figure with its interval, what is absent, and the worst reports; as Markdown and as HTML.

Draws what it is given; see :mod:`echo_pl.evaluation.scoring` for what is computed.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from echo_pl.evaluation.cases import Sections, formatted
from echo_pl.evaluation.document import html_document
from echo_pl.evaluation.scoring import Compared, Scored, worst

Difference = Callable[[str, str], dict[str, list[str]]]
"""From prediction and reference to findings by kind (hallucinated, omitted)."""
MISSING = "–"
_HEAD = ("score", "value", "interval")
_HEAD_AGAINST = ("other run", "difference", "interval of it", "p", "p (Holm)", "verdict")


@dataclass(frozen=True, kw_only=True)
class ShownCase:
    """One of the worst reports."""

    key: str
    value: str
    prediction: str
    reference: str
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """All that a page shows."""

    title: str
    scored: Scored
    level: float
    compared: Sequence[Compared] = ()
    other: str = ""
    """What the run is compared with."""
    notes: Sequence[str] = ()
    """What a reader must know before the figures: what was empty, what could not be read."""
    worst_by: str = ""
    cases: Sequence[ShownCase] = ()
    command: str = ""
    _by_name: dict[str, Compared] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {one.name: one for one in self.compared})

    def markdown(self) -> str:
        """As Markdown."""
        head = self._head()
        rule = [":--", *["--:"] * (len(head) - 1)]
        lines = [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in (head, rule, *self._body())]
        parts = [f"# {self.title}", self._introduction(), "\n".join(f"- {note}" for note in self.notes), "\n".join(lines)]
        if self.scored.absent:
            parts += ["## Absent", "\n".join(f"- {one.name}: {one.reason}" for one in self.scored.absent)]
        parts += ["## Signatures", "\n".join(f"- `{text}`" for text in self._signatures())]
        if self.cases:
            parts.append(f"## Worst reports by {self.worst_by}")
        for case in self.cases:
            texts = (
                f"> **{name}** {_quoted(text)}" for name, text in (("Reference", case.reference), ("Prediction", case.prediction))
            )
            parts += [f"### {case.key} ({case.value})", "\n>\n".join(texts), "\n".join(f"- {note}" for note in case.notes)]
        if self.command:
            parts += ["## How to reproduce", f"```sh\n{self.command}\n```"]
        return "\n\n".join(part for part in parts if part) + "\n"

    def page(self) -> str:
        """As one HTML document."""
        parts = [f"<h1>{_escaped(self.title)}</h1><p>{_escaped(self._introduction())}</p>"]
        parts += [f"<p>{_escaped(note)}</p>" for note in self.notes]
        head = "".join(f"<th{' class=left' if not place else ''}>{_escaped(cell)}</th>" for place, cell in enumerate(self._head()))
        lines = [
            "".join(f"<td{' class=left' if not place else ''}>{_escaped(cell)}</td>" for place, cell in enumerate(line))
            for line in self._body()
        ]
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        parts.append(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
        if self.scored.absent:
            absent = "".join(f"<li>{_escaped(one.name)}: {_escaped(one.reason)}</li>" for one in self.scored.absent)
            parts.append(f"<h2>Absent</h2><ul>{absent}</ul>")
        signatures = "".join(f"<li>{_escaped(text)}</li>" for text in self._signatures())
        parts.append(f'<details><summary>signatures</summary><ul class="soft">{signatures}</ul></details>')
        if self.cases:
            parts.append(f"<h2>Worst reports by {_escaped(self.worst_by)}</h2>")
        parts += [_case(case) for case in self.cases]
        if self.command:
            parts.append(f"<h2>How to reproduce</h2><pre>{_escaped(self.command)}</pre>")
        return html_document(self.title, "\n".join(parts))

    def _introduction(self) -> str:
        text = (
            f"{len(self.scored.cases)} reports; intervals of {self.level:.0%} by bootstrap over reports (not over training seeds)."
        )
        if not self.compared:
            return text
        how = "exact" if self.compared[0].result.exact else "sampled"
        return f"{text} Compared with {self.other}: paired randomisation test, two-sided, {how}; Holm over all scores."

    def _head(self) -> list[str]:
        return [*_HEAD, *(_HEAD_AGAINST if self.compared else ())]

    def _body(self) -> list[list[str]]:
        lines = []
        for figure in self.scored.figures:
            own = figure.interval
            line = [figure.name, number(own.value), span(own.low, own.high)]
            if self.compared:
                line += _against(self._by_name.get(figure.name))
            lines.append(line)
        empty = [MISSING] * (len(self._head()) - 2)
        return lines + [[one.name, "absent", *empty] for one in self.scored.absent]

    def _signatures(self) -> list[str]:
        return list(dict.fromkeys(figure.signature for figure in self.scored.figures))


def shown_cases(scored: Scored, by: str, count: int, sections: Sections, difference: Difference | None) -> list[ShownCase]:
    """The worst cases of a run, with what is wrong with them.

    Raises:
        ValueError: there is no such figure.
    """
    values, found = scored.of_reports[scored.figure(by).name], []
    for place in worst(scored, by, count):
        case = scored.cases[place]
        prediction, reference = (formatted(report, sections) for report in (case.prediction.report, case.reference))
        notes = [] if case.prediction.parsed else ["could not be read as a report: scored as empty"]
        if case.prediction.stopped is False:
            notes.append("did not stop")
        if difference is not None:
            notes += [f"{kind}: {', '.join(names)}" for kind, names in difference(prediction, reference).items() if names]
        found.append(
            ShownCase(
                key=case.key,
                value=number(values[place]),
                prediction=prediction or "(empty)",
                reference=reference,
                notes=tuple(notes),
            )
        )
    return found


def number(value: float) -> str:
    """Four decimals, fewer where the number is large.

    >>> number(0.61234), number(123.456), number(float("nan"))
    ('0.6123', '123.5', '–')
    """
    if math.isnan(value):
        return MISSING
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"


def span(low: float, high: float) -> str:
    """An interval."""
    return f"{number(low)} to {number(high)}"


def probability(p: float) -> str:
    """A p-value.

    >>> probability(0.00004), probability(0.0312)
    ('< 0.001', '0.031')
    """
    if math.isnan(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _against(one: Compared | None) -> list[str]:
    if one is None:
        return [MISSING] * len(_HEAD_AGAINST)
    result = one.result
    return [
        number(one.other),
        f"{'+' if result.difference > 0 else ''}{number(result.difference)}",
        span(result.low, result.high),
        probability(result.p),
        probability(one.p_holm),
        one.verdict,
    ]


def _case(case: ShownCase) -> str:
    fields = (("reference", case.reference), ("prediction", case.prediction))
    text = "".join(f'<p><span class="head">{name}</span>{_escaped(words)}</p>' for name, words in fields)
    notes = "".join(f'<p class="soft"><span class="bad">{_escaped(note)}</span></p>' for note in case.notes)
    return f'<div class="report"><h3>{_escaped(case.key)} ({_escaped(case.value)})</h3>{text}{notes}</div>'


def _escaped(text: str) -> str:
    return html.escape(text)


def _quoted(text: str) -> str:
    """Markdown that shows the text as it is."""
    return "".join(f"\\{character}" if character in "\\`*_[]#|" else character for character in html.escape(text, quote=False))
