"""A scored run as one self-contained HTML page: the figures that matter first, all figures by group, and the worst reports.

Draws a :class:`~echo_pl.evaluation.score_report.ScoreReport`; computes nothing. No script, no network; small plots are inline SVG.
"""

from __future__ import annotations

import base64
import html
import io
import math

from PIL import Image

from echo_pl.evaluation.document import html_document
from echo_pl.evaluation.score_report import EMPTY_TEXT, ScoreReport, ShownCase, number, probability, span
from echo_pl.evaluation.scoring import Compared, Figure
from echo_pl.evaluation.word_marks import Marked, marked
from echo_pl.pages.tables import MISSING

HEADLINES = ("findings_f1_micro", "hallucinated_findings", "omitted_findings", "rouge_l_google", "cider_d", "stopped")
"""Shown large, where they are there."""
SIDE = 320
"""Largest side of a shown image, in pixels."""
_BINS = 20
_ARROWS = {True: "↑", False: "↓", None: ""}
_STYLES = {"better": "good", "worse": "bad"}


def score_page(report: ScoreReport) -> str:
    """The page as HTML text."""
    parts = [f"<h1>{_escaped(report.title)}</h1><p>{_escaped(report.introduction())}</p>"]
    parts += [f'<p class="note">{_escaped(note)}</p>' for note in report.notes]
    parts += [_tiles(report), _table(report)]
    if report.scored.absent:
        absent = "".join(f"<li>{_escaped(one.name)}: {_escaped(one.reason)}</li>" for one in report.scored.absent)
        parts.append(f'<h2>Absent</h2><ul class="soft">{absent}</ul>')
    signatures = "".join(f"<li>{_escaped(text)}</li>" for text in report.signatures())
    parts.append(f'<details><summary>signatures</summary><ul class="soft">{signatures}</ul></details>')
    if report.cases:
        parts.append(f"<h2>Worst reports by {_escaped(report.worst_by)}</h2>{_histogram(report)}")
        parts.append(
            '<p class="soft">Underlined: words that the prediction has and the reference lacks there, and words of the '
            "reference that the prediction lacks.</p>"
        )
    parts += [_case(case) for case in report.cases]
    if report.command:
        parts.append(f"<h2>How to reproduce</h2><pre>{_escaped(report.command)}</pre>")
    return html_document(report.title, "\n".join(parts))


def _tiles(report: ScoreReport) -> str:
    names = {figure.name for figure in report.scored.figures}
    tiles = []
    for name in HEADLINES:
        if name not in names:
            continue
        figure = report.scored.figure(name)
        own, compared = figure.interval, report.comparison(name)
        text = f'<span class="head">{_named(figure)}</span><strong>{number(own.value)}</strong>'
        text += f'<span class="soft">{span(own.low, own.high)}</span>'
        if compared is not None:
            text += f'<span class="{_style(compared)}">{_signed(compared.result.difference)} {compared.verdict}</span>'
        tiles.append(f'<div class="tile">{text}</div>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _table(report: ScoreReport) -> str:
    heads = ["score", "value", "interval"]
    if report.compared:
        heads += ["other run", "difference", "interval of it", "", "p", "p (Holm)", "verdict"]
    lines = [_row("th", heads)]
    for heading, names in report.groups.items():
        lines.append(f'<tr><th class="left group" colspan="{len(heads)}">{_escaped(heading)}</th></tr>')
        for name in names:
            figure = report.scored.figure(name)
            cells = [_named(figure), number(figure.interval.value), span(figure.interval.low, figure.interval.high)]
            if report.compared:
                cells += _compared_cells(report.comparison(name))
            lines.append(_row("td", cells))
    return f'<h2>Figures</h2><div class="wide"><table><tbody>{"".join(lines)}</tbody></table></div>'


def _row(tag: str, cells: list[str]) -> str:
    """Of cells that are HTML; the first is set left."""
    first, *others = cells
    return f"<tr><{tag} class=left>{first}</{tag}>{''.join(f'<{tag}>{cell}</{tag}>' for cell in others)}</tr>"


def _compared_cells(one: Compared | None) -> list[str]:
    if one is None:
        return [MISSING] * 7
    result = one.result
    return [
        number(one.other),
        _signed(result.difference),
        span(result.low, result.high),
        _whisker(one),
        probability(result.p),
        probability(one.p_holm),
        f'<span class="{_style(one)}">{one.verdict}</span>',
    ]


def _whisker(one: Compared) -> str:
    """The interval of a difference about zero, scaled by its own farther end: which side it lies on, not how large it is."""
    result = one.result
    if not all(map(math.isfinite, (result.low, result.high, result.difference))):
        return ""
    reach = max(abs(result.low), abs(result.high)) or 1.0
    low, middle, high = (60 + 54 * value / reach for value in (result.low, result.difference, result.high))
    return (
        f'<svg class="whisker {_style(one)}" viewBox="0 0 120 12" width="120" height="12" role="img">'
        f'<line class="zero" x1="60" x2="60" y1="0" y2="12"/><line x1="{low:.1f}" x2="{high:.1f}" y1="6" y2="6"/>'
        f'<circle cx="{middle:.1f}" cy="6" r="3"/></svg>'
    )


def _histogram(report: ScoreReport) -> str:
    """How the figure that the worst are chosen by spreads over all reports."""
    values = [value for value in report.scored.of_reports[report.worst_by] if math.isfinite(value)]
    if not values:
        return ""
    low, high = min(0.0, *values), max(1.0, *values)
    counts = [0] * _BINS
    for value in values:
        counts[min(_BINS - 1, int(_BINS * (value - low) / (high - low)))] += 1
    bars = "".join(
        f'<rect x="{20 * place + 1}" y="{80 - 76 * count / max(counts):.1f}" width="18" height="{76 * count / max(counts):.1f}">'
        f"<title>{count} reports</title></rect>"
        for place, count in enumerate(counts)
    )
    return (
        f'<figure><svg class="bars" viewBox="0 0 400 96" width="400" height="96" role="img" aria-label="histogram">{bars}'
        f'<line x1="0" x2="400" y1="80.5" y2="80.5"/><text x="0" y="94">{low:g}</text>'
        f'<text x="400" y="94" text-anchor="end">{high:g}</text></svg>'
        f'<figcaption class="soft">{_escaped(report.worst_by)} of {len(values)} reports by themselves</figcaption></figure>'
    )


def _case(case: ShownCase) -> str:
    ours, theirs = marked(case.prediction, case.reference)
    fields = [("reference", _words(theirs, "missing")), ("prediction", _words(ours, "extra"))]
    if case.other is not None:
        fields.append(("other run", _words(marked(case.other, case.reference)[0], "extra")))
    text = "".join(f'<p><span class="head">{name}</span>{words}</p>' for name, words in fields)
    notes = "".join(f'<p class="soft"><span class="bad">{_escaped(note)}</span></p>' for note in case.notes)
    whole = f'<div class="report"><h3>{_escaped(case.key)} ({_escaped(case.value)})</h3>{text}{notes}</div>'
    if case.image is None:
        return whole
    picture = f'<img alt="chest X-ray" src="{_image_uri(case.image)}">'
    return f'<div class="study case"><aside>{picture}</aside><div>{whole}</div></div>'


def _words(text: Marked, style: str) -> str:
    parts = (_escaped(words) if common else f'<span class="{style}">{_escaped(words)}</span>' for words, common in text)
    return "".join(parts) or f'<span class="bad">{EMPTY_TEXT}</span>'


def _image_uri(image: Image.Image) -> str:
    small = image.convert("L")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _named(figure: Figure) -> str:
    """Name and better direction; the signature where the pointer rests."""
    return f'<span title="{_escaped(figure.signature)}">{_escaped(figure.name)} {_ARROWS[figure.better]}</span>'


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value)}"


def _style(one: Compared) -> str:
    return _STYLES.get(one.verdict, "soft")


def _escaped(text: str) -> str:
    return html.escape(text)
