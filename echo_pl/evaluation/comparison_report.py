"""The comparison of methods as ``report.md`` and as one self-contained page with held-out studies, report by report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from echo_pl.evaluation.harness import EvaluatedMethod
from echo_pl.evaluation.plot import png, quality_speed_figure
from echo_pl.evaluation.rows import Row, comparison_table, legend, score_variants
from echo_pl.evaluation.trajectory_html import trajectory_view
from echo_pl.io.atomic import write_bytes_atomic, write_text_atomic
from echo_pl.pages.document import data_uri, image_uri, render
from echo_pl.pages.tables import Table
from echo_pl.reports.report import ReportJudge
from echo_pl.structs import ReportText


@dataclass(frozen=True, kw_only=True)
class ShownStudy:
    """A held-out study as the page shows it."""

    key: str
    image: Image.Image | None
    reference: ReportText
    reports: tuple[tuple[str, ReportText, Mapping[str, Any] | None], ...]
    """Label and report of every method, and the record of its trajectory
    (:func:`~echo_pl.evaluation.trajectory_html.trajectory_record`), if one was kept."""


def shown_studies(
    evaluated: Sequence[EvaluatedMethod],
    references: Mapping[str, ReportText],
    images: Mapping[str, Image.Image],
    trajectories: Mapping[tuple[str, str], Mapping[str, Any]],
) -> list[ShownStudy]:
    """Collect the reports of all methods for the studies in ``references``, in its order.

    Args:
        evaluated: methods to show, in order; all decoded the same studies.
        references: reference reports by study key.
        images: images by study key; a study may have none.
        trajectories: records by (setting label, study key); a pair may be missing.

    Raises:
        ValueError: a method did not decode one of the studies.
    """
    written = {item.setting.label: dict(zip(item.outcome.keys, item.outcome.reports, strict=True)) for item in evaluated}
    studies = []
    for key, reference in references.items():
        for label, reports in written.items():
            if key not in reports:
                raise ValueError(f"study {key!r} was not decoded by {label!r}")
        shown = tuple((label, reports[key], trajectories.get((label, key))) for label, reports in written.items())
        studies.append(ShownStudy(key=key, image=images.get(key), reference=reference, reports=shown))
    return studies


def write_report(
    path: Path | str,
    title: str,
    rows: Sequence[Row],
    *,
    introduction: str = "",
    notes: Sequence[str] = (),
    signatures: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
    reproduce: str = "",
) -> Path:
    """Write the comparison in Markdown, and its plot as ``<name>.png`` beside it.

    Args:
        path: of the Markdown.
        title: heading.
        rows: rows of the comparison.
        introduction: a paragraph below the title.
        notes: conclusions, one bullet each.
        signatures: variant of every score.
        seconds: wall time by step of the run.
        reproduce: command that makes the report.
    """
    path = Path(path)
    plot = write_bytes_atomic(path.with_suffix(".png"), png(quality_speed_figure(rows)))
    parts = [f"# {title}", introduction, comparison_table(rows).markdown(), legend()]
    parts += [f"<sub>{score_variants(signatures)}</sub>"] if signatures else []
    parts += ["\n".join(f"- {note}" for note in notes), f"![Finding F1 and valid sentences against speed]({plot.name})"]
    if seconds:
        steps = Table(["step", "seconds"], [[step, f"{value:.0f}"] for step, value in seconds.items()])
        parts += ["## Wall time", steps.markdown()]
    if reproduce:
        parts += ["## How to reproduce", f"```sh\n{reproduce}\n```"]
    return write_text_atomic(path, "\n\n".join(part for part in parts if part) + "\n")


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
    """HTML text of the page; further arguments as in :func:`write_report`.

    Args:
        title: heading.
        rows: rows of the comparison, for table and plot.
        studies: held-out studies to show in full.
        judge: marks invalid sentences and lists findings; None leaves both out.
    """
    return render(
        "comparison.html",
        title=title,
        introduction=introduction,
        scores=comparison_table(rows),
        legend=legend(),
        variants=score_variants(signatures) if signatures else "",
        plot=data_uri(png(quality_speed_figure(rows)), "image/png"),
        studies=[_study_view(study, judge) for study in studies],
        command=reproduce,
    )


def _study_view(study: ShownStudy, judge: ReportJudge | None) -> dict[str, Any]:
    reports = [_report_view("Reference", study.reference, judge, None)]
    for label, report, trajectory in study.reports:
        view = _report_view(label, report, judge, study.reference)
        reports.append(view | {"trajectory": None if trajectory is None else trajectory_view(trajectory)})
    return {"key": study.key, "image": study.image and image_uri(study.image), "reports": reports}


def _report_view(label: str, report: ReportText, judge: ReportJudge | None, reference: ReportText | None) -> dict[str, Any]:
    """A report for the template: its two fields, or with a judge its sentences and its findings against the reference's."""
    view: dict[str, Any] = {"label": label, "trajectory": None, "fields": ()}
    if judge is None:
        return view | {"fields": (("findings", report.findings), ("impression", report.impression))}
    parsed = judge.parse(report)
    wanted = parsed.findings if reference is None else judge.parse(reference).findings
    groups = (
        ("", "findings:" if reference is None else "findings found:", parsed.findings & wanted),
        ("bad", "missed:", wanted - parsed.findings),
        ("bad", "not in the reference:", parsed.findings - wanted),
    )
    findings = [(style, heading, ", ".join(sorted(names))) for style, heading, names in groups if names]
    return view | {"sentences": parsed.sentences, "findings": findings}
