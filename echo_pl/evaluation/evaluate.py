"""An evaluation: predictions to scores with intervals, tests against another run, and the worst reports, as files.

Writes reports.jsonl (a record for each report), aggregate.json (every score with interval and signature), report.md and index.html.
docs/how-to/evaluation.md explains every score.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from echo_pl.data.synthetic import make_judge
from echo_pl.evaluation.cases import Case, check_language, formatted
from echo_pl.evaluation.cases import shown as named
from echo_pl.evaluation.inputs import Inputs, with_other_run
from echo_pl.evaluation.metric_choice import (
    FindingsReader,
    build_metrics,
    finding_differences,
    judge_reader,
)
from echo_pl.evaluation.options import LABELLER, Options
from echo_pl.evaluation.radeval_backend import BACKENDS, clinical_scores
from echo_pl.evaluation.score_files import AGGREGATE, write_aggregate, write_records
from echo_pl.evaluation.score_report import ScoreReport, number, probability, shown_cases, span
from echo_pl.evaluation.scoring import (
    Absent,
    Resampling,
    ScoreComparison,
    ScoredRun,
    compare_runs,
    decoding_rows,
    metric_rows,
    summarize,
)
from echo_pl.io.atomic import write_text_atomic
from echo_pl.metrics.counted import PairMetric
from echo_pl.pages.tables import MISSING, Table
from echo_pl.reports.labeller import Labeller
from echo_pl.reports.regions import REGION_NAMES

OTHER_RUN = "predictions of the other run"
WORST_BY = ("findings_f1_micro", "rouge_l_google")
"""Scores that order the worst reports: the first one that was computed is used."""


def evaluate(options: Options, inputs: Inputs, command: str) -> ScoreReport:
    """Score, compare and write.

    Args:
        options: checked by :func:`~echo_pl.evaluation.options.check_options`.
        inputs: predictions and references.
        command: command line, shown in the report.

    Raises:
        ValueError, OSError: an input is invalid or missing.
    """
    resampling = Resampling(resamples=options.resamples, rounds=options.rounds, level=options.level, seed=options.seed)
    inputs = with_other_run(options, inputs)
    foreign = {"other_language": check_language(inputs.cases, options.language)}
    if inputs.other is not None:
        foreign["other_language_against"] = check_language(inputs.other, options.language, OTHER_RUN)
    reader = _reader(options.reader or inputs.corpus or LABELLER)
    cases = [*inputs.cases, *(inputs.other or [])]
    metrics, absent = build_metrics(options, reader, cases)
    scored = _score(options, inputs.cases, metrics, absent, resampling)
    compared = []
    if inputs.other is not None:
        compared = compare_runs(scored, _score(options, inputs.other, metrics, absent, resampling), resampling)
    about = {**inputs.about, **_settings(options), **foreign}
    return _write(options, inputs, scored, compared, about, reader, command)


def _reader(name: str) -> FindingsReader:
    """Reader of findings: the labeller of real reports, or the judge of a corpus with a fixed set of sentences."""
    judge = None if name == LABELLER else make_judge(name, "normalized")
    if judge is not None:
        return judge_reader(judge, f"judge of corpus {name}")
    labeller = Labeller()
    return FindingsReader(
        name=f"echo-pl {labeller.version}",
        label=labeller.label,
        reads=labeller.understands,
        regions=labeller.regions,
        region_names=REGION_NAMES,
    )


def _score(
    options: Options, cases: list[Case], metrics: list[PairMetric], absent: list[Absent], resampling: Resampling
) -> ScoredRun:
    counted, missing = decoding_rows(cases)
    counted = [*metric_rows(cases, metrics, options.sections), *counted]
    texts = (
        [formatted(one.prediction.report, options.sections) for one in cases],
        [formatted(one.reference, options.sections) for one in cases],
    )
    requested = [name for name in BACKENDS if options.clinical == ("all",) or name in options.clinical]
    for backend in requested:
        if options.language != "en":
            missing.append(Absent(name=backend, reason=f"reads English reports, these are {options.language}"))
            continue
        rows, without = clinical_scores(backend, *texts, options.clinical_models, device=options.device or "cpu")
        counted += rows
        missing += without
    left = [Absent(name=name, reason="not requested (--clinical)") for name in BACKENDS if name not in requested]
    return summarize(cases, counted, [*absent, *missing, *left], resampling)


def _settings(options: Options) -> dict[str, Any]:
    names = ("language", "sections", "seed", "resamples", "rounds", "level")
    libraries = ("echo-pl", "torch", "torchmetrics", "nltk")
    return {name: getattr(options, name) for name in names} | {"versions": {library: version(library) for library in libraries}}


def _write(
    options: Options,
    inputs: Inputs,
    scored: ScoredRun,
    compared: list[ScoreComparison],
    about: dict[str, Any],
    reader: FindingsReader,
    command: str,
) -> ScoreReport:
    names = [score.name for score in scored.scores]
    by = options.worst_by or next(name for name in WORST_BY if name in names)

    def difference(prediction: str, reference: str) -> dict[str, list[str]]:
        return finding_differences(reader.label, prediction, reference)

    shown = shown_cases(scored, by, options.worst, options.sections, difference, others=inputs.other or (), images=inputs.images)
    without = sum(case.image is None for case in shown) if inputs.images is not None else 0
    report = ScoreReport(
        title=inputs.title,
        scored=scored,
        level=options.level,
        compared=compared,
        other=str(options.against or ""),
        notes=[
            *_notes(inputs.cases, about["other_language"], "predictions"),
            *_notes(inputs.other or [], about.get("other_language_against", []), OTHER_RUN),
            *([f"The images of {without} of the reports shown could not be opened."] if without else []),
        ],
        worst_by=by,
        cases=shown,
        command=command,
    )
    pages = {"report.md": report.markdown(), "index.html": report.page()}
    write_records(options.folder, scored.cases, scored.of_reports)  # after all checks, as it replaces an older evaluation
    for name, page in pages.items():
        write_text_atomic(options.folder / name, page)
    write_aggregate(options.folder, scored, compared, about)  # last: a folder with it is complete
    return report


def _notes(cases: list[Case], foreign: list[str], whose: str) -> list[str]:
    """Warnings about a run above its scores."""
    unread = [case.key for case in cases if not case.prediction.parsed]
    notes = []
    if unread:
        notes.append(
            f"{len(unread)} {whose} could not be read as a report and score as empty ones: {named(unread)}. If they have no "
            "headings, give --free-text."
        )
    if foreign:
        notes.append(f"{len(foreign)} {whose} are in another language: {named(foreign)}.")
    return notes


def print_scores(report: ScoreReport, folder: Path) -> None:
    """Print every score with its interval, and the paths of the files."""
    headings = ["score", "value", "interval", *(["difference", "p (Holm)", "verdict"] if report.compared else [])]
    rows = []
    for score in report.scored.scores:
        own, compared = score.interval, report.comparison(score.name)
        row = [score.name, number(own.value), span(own.low, own.high)]
        if compared is not None:
            row += [f"{compared.result.difference:+.4f}", probability(compared.p_holm), compared.verdict]
        rows.append(row + [MISSING] * (len(headings) - len(row)))
    print(Table(headings, rows, left=(0, 2, 5)).text())
    for one in report.scored.absent:
        print(f"absent: {one.name}: {one.reason}")
    for note in report.notes:
        print(f"note: {note}")
    print(f"\nread {folder / 'report.md'}, look at {folder / 'index.html'}; scores in {folder / AGGREGATE}", flush=True)
