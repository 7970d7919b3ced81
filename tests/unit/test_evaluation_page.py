"""The table, the plot, the page and the Markdown report, from rows of small fakes."""

from __future__ import annotations

import re

import pytest
from evaluation_fakes import REPORTS, SPECIAL, FakeJudge, FakeSampler, batches, detokenize, make_batch
from matplotlib.figure import Figure
from PIL import Image

from echo_pl.evaluation import comparison_report
from echo_pl.evaluation.comparison_report import render_page, shown_studies, write_report
from echo_pl.evaluation.harness import EvaluatedMethod, Method, evaluate_methods
from echo_pl.evaluation.plot import quality_speed_figure
from echo_pl.evaluation.rows import COLUMNS, Setting, comparison_table, legend
from echo_pl.evaluation.trajectory_html import trajectory_record
from echo_pl.io.atomic import write_text_atomic
from echo_pl.sampling import TrajectoryRecorder
from echo_pl.structs import ReportText


@pytest.fixture(scope="module")
def evaluated() -> list[EvaluatedMethod]:
    one_step = {"block_size": 8, "kv_cache": "fused"}
    methods = [
        Method(setting=Setting(method="ar"), sampler=FakeSampler(1, seconds=2.0)),
        Method(setting=Setting(method="base_one_step", **one_step), sampler=FakeSampler(stutter=True)),
        Method(setting=Setting(method="distilled", objective="dcd", **one_step), sampler=FakeSampler()),
    ]
    return evaluate_methods(methods, {1: batches(3, 1)}, detokenize, FakeJudge(), progress=False)


@pytest.fixture
def small_plot(monkeypatch) -> None:
    """A plot of nothing, where the test is about the words: drawing one takes a second."""
    monkeypatch.setattr(comparison_report, "quality_speed_figure", lambda rows: Figure(figsize=(0.5, 0.5)))


def test_text_table_is_aligned(evaluated: list[EvaluatedMethod]) -> None:
    heading, rule, *lines = comparison_table([item.row for item in evaluated]).text().splitlines()
    assert heading.startswith("method")
    assert len(lines) == 3
    assert all(len(line) == len(rule) for line in lines)
    assert "4.00" in lines[2]  # over AR: the same tokens in a quarter of the time


def test_markdown_table_has_every_column(evaluated: list[EvaluatedMethod]) -> None:
    rows = [item.row | {"finding_f1": None} for item in evaluated]
    lines = comparison_table(rows).markdown().splitlines()
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert "–" in lines[2]


def test_the_legend_says_what_a_finding_is() -> None:
    assert "finding F1: micro F1 of the findings, side or lobe counted but not size" in legend()


def test_every_score_of_the_table_has_its_variant_in_the_small_print(
    evaluated: list[EvaluatedMethod], tmp_path, small_plot
) -> None:
    rows, signatures = [item.row for item in evaluated], evaluated[0].outcome.signatures
    page = render_page("t", rows, [], None, signatures=signatures)
    report = write_report(tmp_path / "report.md", "t", rows, signatures=signatures).read_text()
    for name in ("finding_f1", "valid_sentences", "valid_reports", "rouge_l", "duplicate_word_rate", "efficiency"):
        assert f"{name}|" in signatures[name]
        assert signatures[name] in page
        assert signatures[name] in report
    assert "Score variants" not in render_page("t", rows, [], None)


def test_plot_labels_every_point(evaluated: list[EvaluatedMethod]) -> None:
    figure = quality_speed_figure([item.row for item in evaluated])
    for axes in figure.axes:
        texts = {text.get_text() for text in axes.texts}
        assert texts == {"AR", "base, one step", "distilled (dcd), one step"}
    with pytest.raises(ValueError, match="no rows"):
        quality_speed_figure([])


def test_plot_without_ar_or_judge(evaluated: list[EvaluatedMethod]) -> None:
    rows = [item.row | {"finding_f1": None, "valid_sentences": None} for item in evaluated[1:]]
    assert quality_speed_figure(rows).axes[0].get_xlabel() == "speed: tokens per second"


def test_page_is_self_contained_and_shows_failures(evaluated: list[EvaluatedMethod]) -> None:
    batch, recorder = make_batch([0]), TrajectoryRecorder()
    FakeSampler().generate(batch, recorder)
    record = trajectory_record(recorder.trajectories(batch.keys)[0], detokenize, SPECIAL, REPORTS[0])
    studies = shown_studies(
        evaluated,
        {"study-0": REPORTS[0]},
        {"study-0": Image.new("L", (8, 8))},
        {(evaluated[2].setting.label, "study-0"): record},
    )
    page = render_page("A <title>", [item.row for item in evaluated], studies, FakeJudge(), reproduce="make demo")
    assert "A &lt;title&gt;" in page
    assert page.count('class="invalid"') == 2  # two sentences that begin "the the", in one of the reports
    assert page.count('class="trajectory"') == 1
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)


def test_a_study_without_a_decode_is_an_error(evaluated: list[EvaluatedMethod]) -> None:
    with pytest.raises(ValueError, match="'study-9' was not decoded"):
        shown_studies(evaluated, {"study-9": REPORTS[0]}, {}, {})


def test_page_without_a_judge_escapes_reports(evaluated: list[EvaluatedMethod], small_plot) -> None:
    hostile = ReportText(findings="<b>bold</b>", impression="")
    studies = shown_studies(evaluated, {"study-0": hostile}, {}, {})
    assert "<b>bold</b>" not in render_page("t", [item.row for item in evaluated], studies, None)


def test_report_and_its_plot(evaluated: list[EvaluatedMethod], tmp_path) -> None:
    path = write_report(tmp_path / "report.md", "Title", [item.row for item in evaluated], notes=["one"], seconds={"rad": 12.3})
    text = path.read_text()
    assert "](report.png)" in text
    assert "| rad | 12 |" in text
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_write_leaves_the_old_file(tmp_path) -> None:
    path = write_text_atomic(tmp_path / "file.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "\ud800")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]
