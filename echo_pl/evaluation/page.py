"""The evaluation as one self-contained HTML page: table, plot, and held-out studies report by report.

Draws what it is given; decodes and computes nothing but the verdict of the judge on each report. See
:mod:`echo_pl.evaluation.markdown` for the same in Markdown.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from echo_pl.evaluation.document import html_document
from echo_pl.evaluation.harness import EvaluatedMethod
from echo_pl.evaluation.plot import quality_speed_figure
from echo_pl.evaluation.rows import Row
from echo_pl.evaluation.table import comparison_table, legend, score_variants
from echo_pl.evaluation.trajectory_html import trajectory_fragment
from echo_pl.io.atomic import write_text_atomic
from echo_pl.reports.report import ReportJudge
from echo_pl.structs import ReportText


@dataclass(frozen=True, kw_only=True)
class ShownReport:
    """What one method wrote for a study."""

    label: str
    report: ReportText
    trajectory: Mapping[str, Any] | None = None
    """Record of :func:`~echo_pl.evaluation.trajectory_html.trajectory_record`, where one was kept."""


@dataclass(frozen=True, kw_only=True)
class ShownStudy:
    """A held-out study with everything the page shows of it."""

    key: str
    image: Image.Image | None
    reference: ReportText
    reports: tuple[ShownReport, ...]


def shown_studies(
    evaluated: Sequence[EvaluatedMethod],
    references: Mapping[str, ReportText],
    images: Mapping[str, Image.Image],
    trajectories: Mapping[tuple[str, str], Mapping[str, Any]],
) -> list[ShownStudy]:
    """Collect what the methods wrote for the studies in ``references``, in its order.

    Args:
        evaluated: the methods to show, in order; all decoded the same studies.
        references: reference reports by study key: the studies to show.
        images: images by study key; a study may have none.
        trajectories: records by (setting label, study key); a pair may be missing.

    Raises:
        ValueError: a study that a method did not decode.
    """
    written = {item.setting.label: dict(zip(item.outcome.keys, item.outcome.reports, strict=True)) for item in evaluated}
    studies = []
    for key, reference in references.items():
        for label, reports in written.items():
            if key not in reports:
                raise ValueError(f"study {key!r} was not decoded by {label!r}")
        shown = tuple(
            ShownReport(label=label, report=reports[key], trajectory=trajectories.get((label, key)))
            for label, reports in written.items()
        )
        studies.append(ShownStudy(key=key, image=images.get(key), reference=reference, reports=shown))
    return studies


def render_page(
    title: str,
    rows: Sequence[Row],
    studies: Iterable[ShownStudy],
    judge: ReportJudge | None,
    *,
    introduction: str = "",
    signatures: Mapping[str, str] | None = None,
    reproduce: str = "",
) -> str:
    """The page as HTML text.

    Args:
        title: heading.
        rows: rows of the comparison, for table and plot.
        studies: held-out studies to show in full.
        judge: says which sentences are invalid and which findings a report states; ``None`` leaves both out.
        introduction: a paragraph under the title.
        signatures: the variant of every score, for the small print.
        reproduce: the command that makes this page.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if introduction:
        parts.append(f"<p>{html.escape(introduction)}</p>")
    parts.append(f'<h2>Figures</h2><div class="wide">{_table(rows)}</div><p class="soft">{html.escape(legend())}</p>')
    if signatures:
        parts.append(f'<p class="soft">{html.escape(score_variants(signatures))}</p>')
    parts.append(
        f'<h2>Quality against speed</h2><img class="plot" '
        f'alt="Finding F1 and valid sentences over speed" src="{_figure_uri(quality_speed_figure(rows))}">'
    )
    for study in studies:
        parts.append(_study(study, judge))
    if reproduce:
        parts.append(f"<h2>How to reproduce</h2><pre>{html.escape(reproduce)}</pre>")
    return html_document(title, "\n".join(parts))


def write_page(path: Path | str, page: str) -> Path:
    """Write a rendered page atomically; returns its path."""
    return write_text_atomic(path, page)


def _table(rows: Sequence[Row]) -> str:
    table = comparison_table(rows)

    def line(tag: str, values: Sequence[str]) -> str:
        marked = (
            f"<{tag}{' class=left' if place in table.left else ''}>{html.escape(value)}</{tag}>"
            for place, value in enumerate(values)
        )
        return f"<tr>{''.join(marked)}</tr>"

    body = "".join(line("td", values) for values in table.rows)
    return f"<table><thead>{line('th', table.headings)}</thead><tbody>{body}</tbody></table>"


def _study(study: ShownStudy, judge: ReportJudge | None) -> str:
    picture = "" if study.image is None else f'<img alt="chest X-ray" src="{_image_uri(study.image)}">'
    reports = [_report("Reference", study.reference, judge, None)]
    for shown in study.reports:
        reports.append(_report(shown.label, shown.report, judge, study.reference))
        if shown.trajectory is not None:
            fragment = trajectory_fragment(dict(shown.trajectory), with_reference=False)
            reports.append(f"<details open><summary>how it was decoded</summary>{fragment}</details>")
    return f'<h2>{html.escape(study.key)}</h2><div class="study"><aside>{picture}</aside><div>{"".join(reports)}</div></div>'


def _report(label: str, report: ReportText, judge: ReportJudge | None, reference: ReportText | None) -> str:
    """A report; with a judge its invalid sentences are underlined and its findings are held against the reference's."""
    heading = f"<h3>{html.escape(label)}</h3>"
    if judge is None:
        fields = (("findings", report.findings), ("impression", report.impression))
        text = "".join(f'<p><span class="head">{name}</span>{html.escape(words)}</p>' for name, words in fields)
        return f'<div class="report">{heading}{text}</div>'
    parsed = judge.parse(report)
    text = " ".join(_sentence(sentence, valid) for sentence, valid in parsed.sentences) or "(empty)"
    wanted = parsed.findings if reference is None else judge.parse(reference).findings
    marks = (
        ("", "findings:" if reference is None else "findings found:", parsed.findings & wanted),
        ("bad", "missed:", wanted - parsed.findings),
        ("bad", "not in the reference:", parsed.findings - wanted),
    )
    notes = [_labels(style, sign, labels) for style, sign, labels in marks if labels] or ["no findings"]
    return f'<div class="report">{heading}<p>{text}</p><p class="soft">{" &ensp; ".join(notes)}</p></div>'


def _sentence(sentence: str, valid: bool) -> str:
    text = html.escape(sentence)
    return text if valid else f'<span class="invalid" title="could not have been written">{text}</span>'


def _labels(style: str, sign: str, labels: frozenset[str]) -> str:
    return f'<span class="{style}">{sign} {html.escape(", ".join(sorted(labels)))}</span>'


def _figure_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return _data_uri(buffer)


def _image_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("L").save(buffer, format="png")
    return _data_uri(buffer)


def _data_uri(buffer: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
