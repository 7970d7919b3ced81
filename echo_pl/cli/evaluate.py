"""Score reports: predictions from a file, or those that a checkpoint writes for held-out studies.

    echo-pl evaluate --predictions ours.jsonl --references test.json --out outputs/evaluation/ours
    echo-pl evaluate --predictions ours.jsonl --references test.json --against theirs.json --out both
    echo-pl evaluate --checkpoint <run>/checkpoints/final.ckpt --out outputs/evaluation/dcd data=synthetic
    echo-pl evaluate --upload outputs/evaluation/ours --mlflow http://server:5000

Writes reports.jsonl (a record a report), aggregate.json (every score with its interval and signature), report.md and index.html
(with the worst reports), and then logs to MLflow where asked. docs/how-to/evaluation.md says what every score is and cannot see.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from echo_pl.cli.evaluate_inputs import Inputs, read_inputs
from echo_pl.cli.evaluate_options import LABELLER, parser, refuse_bad_options, refuse_with_upload
from echo_pl.config.errors import reported
from echo_pl.data.synthetic import make_judge
from echo_pl.evaluation.cases import Case, check_language, formatted
from echo_pl.evaluation.cases import shown as named
from echo_pl.evaluation.metric_choice import FindingsReader, MetricChoice, build_metrics, finding_differences, judge_reader
from echo_pl.evaluation.radeval_backend import BACKENDS, Absent, clinical_scores
from echo_pl.evaluation.score_files import AGGREGATE, write_aggregate, write_records
from echo_pl.evaluation.score_report import ScoreReport, number, probability, shown_cases, span
from echo_pl.evaluation.scoring import (
    MetricRows,
    Resampling,
    ScoreComparison,
    ScoredRun,
    compare_runs,
    decoding_rows,
    metric_rows,
    summarize,
)
from echo_pl.evaluation.training_words import training_vocabulary
from echo_pl.evaluation.upload import upload
from echo_pl.io.atomic import write_text_atomic
from echo_pl.io.command_line import command_line
from echo_pl.metrics.counted import PairMetric
from echo_pl.metrics.words import words_of
from echo_pl.reports.labeller import Labeller
from echo_pl.reports.regions import REGION_NAMES

OTHER_RUN = "predictions of the other run"
WORST_BY = ("findings_f1_micro", "rouge_l_google")
"""What the worst reports are chosen by: the first of these that there is."""


def evaluate(args: argparse.Namespace, command: str) -> ScoreReport:
    """Everything that the command does but logging to MLflow.

    Args:
        args: its options.
        command: how it was called, for who wants to do it again.

    Raises:
        ValueError, OSError: with what is wrong; what was decoded by then is in ``args.out``.
    """
    refuse_bad_options(args)
    words = words_of(args.language)
    resampling = Resampling(resamples=args.resamples, rounds=args.rounds, level=args.level, seed=args.seed)
    inputs = read_inputs(args)
    strange = {"other_language": check_language(inputs.cases, args.language)}
    if inputs.other is not None:
        strange["other_language_against"] = check_language(inputs.other, args.language, OTHER_RUN)
    reader = _reader(args.reader or inputs.corpus or LABELLER)
    cases = [*inputs.cases, *(inputs.other or [])]
    choice = MetricChoice(
        words=words,
        with_wordnet=args.wordnet,
        reader=reader,
        vocabulary=None if args.vocabulary is None else training_vocabulary(args.vocabulary, words, args.version or "normalized"),
        language_model=args.language_model,
        embedding_model=args.embedding_model,
        device=args.device or "cpu",
    )
    metrics, absent = build_metrics(choice, cases, args.sections)
    scored = _score(args, inputs.cases, metrics, absent, resampling)
    compared = []
    if inputs.other is not None:
        compared = compare_runs(scored, _score(args, inputs.other, metrics, absent, resampling), resampling)
    about = {**inputs.about, **_settings(args), **strange}
    return _write(args, inputs, scored, compared, about, reader, command)


def _reader(name: str) -> FindingsReader:
    """Who reads findings: the labeller of real reports, or the judge of a corpus that knows every sentence of it."""
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
    args: argparse.Namespace, cases: list[Case], metrics: list[PairMetric], absent: list[Absent], resampling: Resampling
) -> ScoredRun:
    counted, missing = decoding_rows(cases)
    counted = [*metric_rows(cases, metrics, args.sections), *counted]
    texts = (
        [formatted(one.prediction.report, args.sections) for one in cases],
        [formatted(one.reference, args.sections) for one in cases],
    )
    for backend in BACKENDS if args.clinical == ["all"] else args.clinical:
        if args.language != "en":
            missing.append(Absent(name=backend, reason=f"reads English reports, these are {args.language}"))
            continue
        found = clinical_scores(backend, *texts, args.clinical_models, device=args.device or "cpu")
        if isinstance(found, list):
            missing += found
        else:
            pairs = zip(found.metrics, found.rows, strict=True)
            counted += [MetricRows(metric=metric, rows_NK=rows) for metric, rows in pairs]
    left = [
        Absent(name=name, reason="not asked for (--clinical)")
        for name in BACKENDS
        if args.clinical != ["all"] and name not in args.clinical
    ]
    return summarize(cases, counted, [*absent, *missing, *left], resampling)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ("language", "sections", "seed", "resamples", "rounds", "level")
    libraries = ("echo-pl", "torch", "torchmetrics", "nltk")
    return {name: getattr(args, name) for name in names} | {"versions": {library: version(library) for library in libraries}}


def _write(
    args: argparse.Namespace,
    inputs: Inputs,
    scored: ScoredRun,
    compared: list[ScoreComparison],
    about: dict[str, Any],
    reader: FindingsReader,
    command: str,
) -> ScoreReport:
    names = [figure.name for figure in scored.scores]
    by = args.worst_by or next(name for name in WORST_BY if name in names)

    def difference(prediction: str, reference: str) -> dict[str, list[str]]:
        return finding_differences(reader.label, prediction, reference)

    shown = shown_cases(scored, by, args.worst, args.sections, difference, others=inputs.other or (), images=inputs.images)
    without = sum(case.image is None for case in shown) if inputs.images is not None else 0
    report = ScoreReport(
        title=inputs.title,
        scored=scored,
        level=args.level,
        compared=compared,
        other=str(args.against or ""),
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
    write_records(args.out, scored.cases, scored.of_reports)  # all that can be refused has been: an older evaluation goes now
    for name, page in pages.items():
        write_text_atomic(args.out / name, page)
    write_aggregate(args.out, scored, compared, about)  # last: a folder that has it is whole
    return report


def _notes(cases: list[Case], strange: list[str], whose: str) -> list[str]:
    """What must be known of a run before the figures."""
    unread = [case.key for case in cases if not case.prediction.parsed]
    notes = []
    if unread:
        notes.append(
            f"{len(unread)} {whose} could not be read as a report and score as empty ones: {named(unread)}. If they have no "
            "headings, give --free-text."
        )
    if strange:
        notes.append(f"{len(strange)} {whose} are in another language: {named(strange)}.")
    return notes


def _print(report: ScoreReport, folder: Path) -> None:
    width = max(len(figure.name) for figure in report.scored.scores)
    for figure in report.scored.scores:
        own, compared = figure.interval, report.comparison(figure.name)
        line = f"{figure.name:{width}}  {number(own.value):>8}  {span(own.low, own.high):18}"
        if compared is not None:
            line += f"  {compared.result.difference:+.4f}  p (Holm) {probability(compared.p_holm):7}  {compared.verdict}"
        print(line.rstrip())
    for one in report.scored.absent:
        print(f"{one.name:{width}}  absent: {one.reason}")
    for note in report.notes:
        print(f"note: {note}")
    print(f"\nread {folder / 'report.md'}, look at {folder / 'index.html'}; figures in {folder / AGGREGATE}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    args = parser(__doc__).parse_args(arguments)
    with reported():
        if args.upload is None:
            _print(evaluate(args, command_line("evaluate", arguments)), args.out)
        else:
            refuse_with_upload(args)
        if args.mlflow is not None:
            run = upload(args.upload or args.out, args.mlflow, args.experiment or "evaluation", with_texts=args.mlflow_texts)
            print(f"logged to {args.mlflow} as run {run}")


if __name__ == "__main__":
    main()
