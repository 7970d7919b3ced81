"""A scored run as Markdown and as one self-contained page: every score with its interval, absent scores, the worst reports."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from itertools import groupby
from typing import Any

from PIL import Image

from echo_pl.evaluation.cases import Case, Sections, formatted
from echo_pl.evaluation.predictions import Images
from echo_pl.evaluation.scoring import Score, ScoreComparison, ScoredRun, worst
from echo_pl.pages.document import image_uri, render
from echo_pl.pages.tables import MISSING, Table

Difference = Callable[[str, str], dict[str, list[str]]]
"""From prediction and reference to findings by kind (hallucinated, omitted)."""
EMPTY_TEXT = "(empty)"
GROUPS: dict[str, tuple[str, ...]] = {
    "Content of the report": ("findings", "hallucinated", "omitted", "region", "ratescore", "radgraph", "chexbert", "semb"),
    "Words shared with the reference": ("rouge", "meteor", "bleu", "cider"),
    "Similarity by models": ("cosine", "embedding", "perplexity"),
    "Form of the text": ("empty", "unparsable", "length", "duplicate", "repetition", "non_word"),
    "Decoding": ("stopped", "looped", "eos", "forwards", "nfe"),
}
"""Headings of tables, and the prefixes of the names of their scores."""
OTHERS = "Others"
HEADLINES = ("findings_f1_micro", "hallucinated_findings", "omitted_findings", "rouge_l_google", "cider_d", "stopped")
"""Scores that the page shows large, if they were computed."""
SIDE = 320
"""Longest side of an image on the page, in pixels."""
_HEAD = ("score", "value", "interval")
_HEAD_AGAINST = ("other run", "difference", "interval of it", "p", "p (Holm)", "verdict")
_AGAINST = ("other", "difference", "difference_interval", "p", "p_holm", "verdict")
"""Keys of their values in a view."""
_STYLES = {"better": "good", "worse": "bad"}
_BINS = 20

Stretches = tuple[tuple[str, bool], ...]
"""Stretches of a text in order, white space included, and whether the other text shares them."""
_PIECE = re.compile(r"([\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+)")


@dataclass(frozen=True, kw_only=True)
class ShownCase:
    """One of the worst reports."""

    key: str
    value: str
    prediction: str
    reference: str
    notes: tuple[str, ...]
    other: str | None = None
    """Report of the run that this one is compared with."""
    image: Image.Image | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """Content of the page and of the Markdown."""

    title: str
    scored: ScoredRun
    level: float
    compared: Sequence[ScoreComparison] = ()
    other: str = ""
    """Name of the run that this one is compared with."""
    notes: Sequence[str] = ()
    """Warnings above the scores: empty and unreadable reports."""
    worst_by: str = ""
    cases: Sequence[ShownCase] = ()
    command: str = ""

    @cached_property
    def _comparisons(self) -> dict[str, ScoreComparison]:
        return {one.name: one for one in self.compared}

    @property
    def groups(self) -> dict[str, list[str]]:
        """Names of the scores by heading, each name once; headings without scores are left out."""
        names = [score.name for score in self.scored.scores]
        found = {heading: [name for name in names if name.startswith(prefixes)] for heading, prefixes in GROUPS.items()}
        grouped = {name for group in found.values() for name in group}
        found[OTHERS] = [name for name in names if name not in grouped]
        return {heading: group for heading, group in found.items() if group}

    def comparison(self, name: str) -> ScoreComparison | None:
        """Comparison of one score; None if it is not compared."""
        return self._comparisons.get(name)

    def introduction(self) -> str:
        """Method of the intervals and tests, in one or two sentences."""
        text = (
            f"{len(self.scored.cases)} reports; intervals of {self.level:.0%} by bootstrap over reports (not over training seeds)."
        )
        if not self.compared:
            return text
        how = "exact" if self.compared[0].result.exact else "sampled"
        return f"{text} Compared with {self.other}: paired randomisation test, two-sided, {how}; Holm over all scores."

    def signatures(self) -> list[str]:
        """Every signature once."""
        return list(dict.fromkeys(score.signature for score in self.scored.scores))

    def markdown(self) -> str:
        """Report in Markdown."""
        head = [*_HEAD, *(_HEAD_AGAINST if self.compared else ())]
        table = Table(head, [self._line(name) for names in self.groups.values() for name in names])
        parts = [f"# {self.title}", self.introduction(), "\n".join(f"- {note}" for note in self.notes), table.markdown()]
        if self.scored.absent:
            parts += ["## Absent scores", "\n".join(f"- {one.name}: {one.reason}" for one in self.scored.absent)]
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

    def page(self) -> str:
        """Report as HTML text."""
        views = {score.name: _score_view(score, self.comparison(score.name)) for score in self.scored.scores}
        against = ("other run", "difference", "interval of it", "", "p", "p (Holm)", "verdict")
        return render(
            "scores.html",
            title=self.title,
            report=self,
            tiles=[views[name] for name in HEADLINES if name in views],
            headings=[*_HEAD, *(against if self.compared else ())],
            groups={heading: [views[name] for name in names] for heading, names in self.groups.items()},
            histogram=_histogram(self.scored.of_reports[self.worst_by]) if self.cases else None,
            cases=map(_case_view, self.cases),
        )

    def _line(self, name: str) -> list[str]:
        view = _score_view(self.scored.score(name), self.comparison(name))
        return [view[key] for key in ("name", "value", "interval", *(_AGAINST if self.compared else ()))]


def shown_cases(
    scored: ScoredRun,
    by: str,
    count: int,
    sections: Sections,
    difference: Difference | None,
    *,
    others: Sequence[Case] = (),
    images: Images | None = None,
) -> list[ShownCase]:
    """Collect the worst cases of a run, with notes on their errors.

    Args:
        scored: the run.
        by: score that orders the cases, of which at most ``count`` are shown.
        count: most cases to show.
        sections: sections of a report to show.
        difference: finds the findings in which two reports differ.
        others: cases of the run that this one is compared with, in the same order.
        images: see :data:`~echo_pl.evaluation.predictions.Images`.

    Raises:
        ValueError: there is no such score.
    """
    values, found = scored.of_reports[scored.score(by).name], []
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
    """Format a score: four decimals, fewer for a large number.

    >>> number(0.61234), number(123.456), number(float("nan"))
    ('0.6123', '123.5', '–')
    """
    if math.isnan(value):
        return MISSING
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"


def span(low: float, high: float) -> str:
    """Format an interval."""
    return f"{number(low)} to {number(high)}"


def probability(p: float) -> str:
    """Format a p-value.

    >>> probability(0.00004), probability(0.0312)
    ('< 0.001', '0.031')
    """
    if math.isnan(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def marked(first: str, second: str) -> tuple[Stretches, Stretches]:
    """Align two texts word by word and mark the shared stretches of both; case is ignored, and only words can differ.

    >>> marked("No effusion.", "no pleural effusion.")
    ((('No effusion.', True),), (('no ', True), ('pleural', False), (' effusion.', True)))
    """
    ours, theirs = _PIECE.split(first), _PIECE.split(second)  # words are at odd places, the text between them at even ones
    own_words, other_words = ([word.lower() for word in pieces[1::2]] for pieces in (ours, theirs))
    blocks = SequenceMatcher(None, own_words, other_words, autojunk=False).get_matching_blocks()
    return (
        _stretches(ours, {block.a + step for block in blocks for step in range(block.size)}),
        _stretches(theirs, {block.b + step for block in blocks for step in range(block.size)}),
    )


def _stretches(pieces: list[str], shared: set[int]) -> Stretches:
    flags = [(piece, place % 2 == 0 or place // 2 in shared) for place, piece in enumerate(pieces) if piece]
    return tuple(("".join(piece for piece, _ in run), common) for common, run in groupby(flags, key=lambda pair: pair[1]))


def _score_view(score: Score, compared: ScoreComparison | None) -> dict[str, Any]:
    own = score.interval
    view = {
        "name": score.name,
        "signature": score.signature,
        "better": score.better,
        "value": number(own.value),
        "interval": span(own.low, own.high),
    }
    if compared is not None:
        return view | _comparison_view(compared) | {"compared": True}
    return view | dict.fromkeys(_AGAINST, MISSING) | {"whisker": None, "style": "", "compared": False}


def _comparison_view(compared: ScoreComparison) -> dict[str, Any]:
    result = compared.result
    ends = (result.low, result.difference, result.high)
    reach = max(abs(result.low), abs(result.high)) or 1.0
    return {
        "other": number(compared.other),
        "difference": f"{'+' if result.difference > 0 else ''}{number(result.difference)}",
        "difference_interval": span(result.low, result.high),
        "whisker": [f"{60 + 54 * value / reach:.1f}" for value in ends] if all(map(math.isfinite, ends)) else None,
        "p": probability(result.p),
        "p_holm": probability(compared.p_holm),
        "verdict": compared.verdict,
        "style": _STYLES.get(compared.verdict, "soft"),
    }


def _histogram(scores: Sequence[float]) -> dict[str, Any] | None:
    """Distribution of a score over reports as bars of an SVG; None if no report has the score."""
    values = [value for value in scores if math.isfinite(value)]
    if not values:
        return None
    low, high = min(0.0, *values), max(1.0, *values)
    counts = [0] * _BINS
    for value in values:
        counts[min(_BINS - 1, int(_BINS * (value - low) / (high - low)))] += 1
    heights = [76 * count / max(counts) for count in counts]
    bars = [
        {"x": 20 * place + 1, "y": f"{80 - height:.1f}", "height": f"{height:.1f}", "count": count}
        for place, (height, count) in enumerate(zip(heights, counts, strict=True))
    ]
    return {"bars": bars, "low": f"{low:g}", "high": f"{high:g}", "reports": len(values)}


def _case_view(case: ShownCase) -> dict[str, Any]:
    ours, theirs = marked(case.prediction, case.reference)
    texts = [("reference", theirs, "missing"), ("prediction", ours, "extra")]
    if case.other is not None:
        texts.append(("other run", marked(case.other, case.reference)[0], "extra"))
    image = None if case.image is None else image_uri(case.image, side=SIDE)
    return {"key": case.key, "value": case.value, "image": image, "texts": texts, "notes": case.notes}


def _quoted(text: str) -> str:
    """Markdown that shows the text unchanged."""
    if not text:
        return EMPTY_TEXT
    return "".join(f"\\{character}" if character in "\\`*_[]#|" else character for character in html.escape(text, quote=False))
