"""The check of the rule engine, on synthetic reports and on a sample of real ones."""

from __future__ import annotations

import json

import pytest
from commands import command

from echo_pl.reports import normalizer_check as check_normalizer
from echo_pl.reports.labeller import TAGGED_NAMES, tagged

ROWS = [
    {"id": "a", "findings": "Heart is normal. Small left effusion.", "impression": "Effusion.",
     "mesh_major": ["Pleural Effusion/left/small"]},
    {"id": "b", "findings": "Lungs clear.", "impression": "Normal.", "mesh_major": ["normal"], "mesh_auto": []},
    {"id": "c", "findings": "", "impression": "", "mesh_major": ["No Indexing"]},
    {"id": "d", "findings": "A nodule.", "impression": "", "mesh_major": ["Cardiomegaly/mild"], "mesh_auto": ["nodule"]},
]  # fmt: skip


def run(monkeypatch, *arguments: object) -> None:
    assert command("corpus", "check")(arguments) == 0


def test_figures(tmp_path, monkeypatch, capsys):
    reports, out, review = tmp_path / "reports.jsonl", tmp_path / "figures.json", tmp_path / "review.jsonl"
    reports.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run(monkeypatch, reports, "--out", out, "--review", review)
    figures = json.loads(out.read_text())
    assert (figures["reports"], figures["normalized"], figures["complete"]) == (4, 3, 3)
    assert list(figures["refused"].values()) == [1]
    assert figures["all_regions_share"] == 1
    assert figures["labeller"]["studies"] == 3
    # effusion and nodule are found, cardiomegaly is missed
    assert figures["labeller"]["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert [json.loads(line)["id"] for line in review.read_text().splitlines()] == ["c"]
    assert "effusion." not in capsys.readouterr().out.lower().replace('"effusion"', "")


def test_no_text_is_written_by_default(tmp_path, monkeypatch):
    reports = tmp_path / "reports.jsonl"
    reports.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run(monkeypatch, reports)
    assert [path.name for path in tmp_path.iterdir()] == ["reports.jsonl"]


def test_a_line_without_a_report_is_an_error(tmp_path):
    path = tmp_path / "reports.jsonl"
    path.write_text('{"id": 1, "text": "x"}\n')
    with pytest.raises(ValueError, match="line 1"):
        list(check_normalizer.read_rows(path, "all"))


def test_a_third_is_held_out():
    keys = [f"study-{number}" for number in range(3_000)]
    held = [key for key in keys if check_normalizer.held_out(key)]
    assert 900 < len(held) < 1_100


def test_tags():
    assert len(TAGGED_NAMES) >= 20
    assert tagged(["No Indexing"]) is None
    assert tagged(["Calcinosis/aorta", "Calcinosis/lung"]) == {"atherosclerosis", "calcification"}
    assert tagged(["Lung/hyperdistention/mild", "normal"]) == {"hyperinflation"}
    assert tagged(["Deformity/thoracic vertebrae/moderate"]) == {"vertebral_deformity"}


def test_real_reports(shared_data):
    path = shared_data / "iu_xray_text" / "reports.jsonl"
    if not path.is_file():
        pytest.skip(f"no reports in {path}")
    rows = list(check_normalizer.read_rows(path, "rest"))[:400]
    checked, seconds = check_normalizer.check(rows)
    figures = check_normalizer.figures(checked, seconds)
    assert figures["complete_share"] >= 0.98
    assert figures["unassigned_share"] <= 0.02
    assert figures["all_regions_share"] == 1
    assert figures["plain_comparison"]["reports"] <= 1
    assert check_normalizer.label_figures(rows)["micro_f1"] >= 0.90
