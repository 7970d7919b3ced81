"""A scored run to be read: every figure with its interval, what is absent, and the worst reports; and all of it as Markdown.

Says what it is given; see :mod:`echo_pl.evaluation.scoring` for what is computed, :mod:`echo_pl.evaluation.score_page` for HTML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from echo_pl.evaluation.cases import Case, Sections, formatted
from echo_pl.evaluation.scoring import Compared, Scored, worst
from echo_pl.evaluation.shown_images import Images
from echo_pl.pages.tables import MISSING, Table

Difference = Callable[[str, str], dict[str, list[str]]]
"""From prediction and reference to findings by kind (hallucinated, omitted)."""
EMPTY_TEXT = "(empty)"
GROUPS: dict[str, tuple[str, ...]] = {
    "What the report states": ("findings", "hallucinated", "omitted", "region", "ratescore", "radgraph", "chexbert", "semb"),
    "Words shared with the reference": ("rouge", "meteor", "bleu", "cider"),
    "Likeness by models": ("cosine", "embedding", "perplexity"),
    "How the text looks": ("empty", "unparsable", "length", "duplicate", "repetition", "non_word"),
    "How it was decoded": ("stopped", "looped", "eos", "forwards"),
}
"""Headings of tables, and how the names of their scores begin."""
OTHERS = "Others"
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
    other: str | None = None
    """What the run that this one is compared with wrote."""
    image: Image.Image | None = None


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
        table = Table(self._head(), [line for names in self.groups.values() for line in map(self._line, names)])
        parts = [f"# {self.title}", self.introduction(), "\n".join(f"- {note}" for note in self.notes), table.markdown()]
        if self.scored.absent:
            parts += ["## Absent", "\n".join(f"- {one.name}: {one.reason}" for one in self.scored.absent)]
        parts += ["## Signatures", "\n".join(f"- `{text}`" for text in self.signatures())]
        if self.cases:
            parts.append(f"## Worst reports by {self.worst_by}")
        for case in self.cases:
            other = () if case.other is None else (("Other run", case.other),)
            fields = (("Reference", case.reference), ("Prediction", case.prediction), *other)
            texts = (f"> **{name}** {_quoted(text)}" for name, text in fields)
            parts += [f"### {case.key} ({case.value})", "\n>\n".join(texts), "\n".join(f"- {note}" for note in case.notes)]
        if self.command:
            parts += ["## How to reproduce", f"```sh\n{self.command}\n```"]
        return "\n\n".join(part for part in parts if part) + "\n"

    @property
    def groups(self) -> dict[str, list[str]]:
        """Names of the figures under their headings, every one once; headings without any are left out."""
        names = [figure.name for figure in self.scored.figures]
        found = {heading: [name for name in names if name.startswith(begins)] for heading, begins in GROUPS.items()}
        known = {name for group in found.values() for name in group}
        found[OTHERS] = [name for name in names if name not in known]
        return {heading: group for heading, group in found.items() if group}

    def comparison(self, name: str) -> Compared | None:
        """Of one figure; None: it is not compared."""
        return self._by_name.get(name)

    def introduction(self) -> str:
        """What was done, in a sentence or two."""
        text = (
            f"{len(self.scored.cases)} reports; intervals of {self.level:.0%} by bootstrap over reports (not over training seeds)."
        )
        if not self.compared:
            return text
        how = "exact" if self.compared[0].result.exact else "sampled"
        return f"{text} Compared with {self.other}: paired randomisation test, two-sided, {how}; Holm over all scores."

    def _head(self) -> list[str]:
        return [*_HEAD, *(_HEAD_AGAINST if self.compared else ())]

    def _line(self, name: str) -> list[str]:
        own = self.scored.figure(name).interval
        line = [name, number(own.value), span(own.low, own.high)]
        return line + _against(self.comparison(name)) if self.compared else line

    def signatures(self) -> list[str]:
        """Every signature once."""
        return list(dict.fromkeys(figure.signature for figure in self.scored.figures))


def shown_cases(
    scored: Scored,
    by: str,
    count: int,
    sections: Sections,
    difference: Difference | None,
    *,
    others: Sequence[Case] = (),
    images: Images | None = None,
) -> list[ShownCase]:
    """The worst cases of a run, with what is wrong with them.

    Args:
        scored: the run.
        by: the figure that says which are the worst.
        count: how many.
        sections: of a report to show.
        difference: who says which findings differ.
        others: the cases of the run that this one is compared with, in the same order.
        images: from keys to images, of those that there are.

    Raises:
        ValueError: there is no such figure.
    """
    values, found = scored.of_reports[scored.figure(by).name], []
    places = worst(scored, by, count)
    pictures = {} if images is None else images([scored.cases[place].key for place in places])
    for place in places:
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
                prediction=prediction,
                reference=reference,
                notes=tuple(notes),
                other=formatted(others[place].prediction.report, sections) if others else None,
                image=pictures.get(case.key),
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


def _quoted(text: str) -> str:
    """Markdown that shows the text as it is."""
    if not text:
        return EMPTY_TEXT
    return "".join(f"\\{character}" if character in "\\`*_[]#|" else character for character in html.escape(text, quote=False))
