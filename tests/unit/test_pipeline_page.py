"""The page of a shard: what it shows, what it marks, what it escapes, and who may read it."""

from __future__ import annotations

import json
import re
import stat
from dataclasses import replace

import pytest
from commands import command
from PIL import Image
from pipeline_fakes import make_components, row, write_dataset

from echo_pl.data.pipeline.page import corpus_page
from echo_pl.data.pipeline.run import prepare
from echo_pl.data.pipeline.settings import Settings
from echo_pl.data.store.study import Study
from echo_pl.structs import ReportText

main = command("corpus", "view")

STUDY = Study(
    key="a1",
    images=(Image.new("L", (900, 600), 7),),
    normalized=ReportText(findings="the thorax is <fine>. a rib is broken.", impression="fracture & pain."),
    raw=ReportText(findings="rib broken.", impression="fracture."),
    labels=("fracture",),
    meta={"statements": json.dumps([["thorax", 21, True], ["bones", 16, False]]), "view": "AP"},
)


def shown_study(study: Study) -> str:
    """HTML of the one study of a page."""
    page = corpus_page("title", "abc", [study])
    return page[page.index("<h2>") :]


def marked_findings(study: Study) -> str:
    """HTML of the normalized findings."""
    return re.findall(r'<span class="head">Findings</span>(.*?)</p>', shown_study(study), re.DOTALL)[0]


def test_imputed_statements_are_marked_and_text_is_escaped():
    marked = marked_findings(STUDY)
    assert re.findall(r"<i [^>]*>(.*?)</i>", marked) == ["the thorax is &lt;fine&gt;."]
    assert '<span title="bones">a rib is broken.</span>' in marked
    assert re.sub("<[^>]*>", "", marked) == "the thorax is &lt;fine&gt;. a rib is broken."


@pytest.mark.parametrize("notes", ["no json", "[1]", '[["thorax", 5, true]]', '[["thorax", 400, true]]', "[]"])
def test_notes_that_do_not_fit_leave_the_text_as_it_is(notes):
    study = replace(STUDY, meta={"statements": notes})
    assert marked_findings(study) == "the thorax is &lt;fine&gt;. a rib is broken."


def test_chinese_statements_have_no_space_between_them():
    study = replace(
        STUDY,
        normalized=ReportText(findings="双肺清晰。心影正常。", impression="正常。"),
        meta={"statements": json.dumps([["lungs", 5, True], ["heart", 5, False]])},
    )
    assert re.findall(r"<i [^>]*>(.*?)</i>", marked_findings(study)) == ["双肺清晰。"]


def test_a_study_is_shown_with_both_reports_small_images_and_labels():
    shown = shown_study(STUDY)
    assert shown.count("data:image/jpeg;base64,") == 1
    assert "rib broken." in shown
    assert "fracture &amp; pain." in shown
    assert "Labels: fracture" in shown
    assert "view AP" in shown
    assert len(shown) < 20_000


def test_a_general_sample_is_shown_with_what_training_asks():
    general = replace(STUDY, raw=None, normalized=ReportText(findings="A dog.", impression=""), meta={"kind": "general"})
    assert "</span>Describe this image.</p>" in shown_study(general)
    assert "</span>What?</p>" in shown_study(replace(general, meta={"kind": "general", "prompt": "What?"}))
    assert "Impression" not in shown_study(general)


def test_the_command_writes_a_page_for_its_owner_alone(tmp_path, capsys):
    table = write_dataset(tmp_path / "source", map(row, range(12)))
    prepare(tmp_path / "out", Settings(shard_size=5, val_share=0, test_share=0), make_components(table))
    page = tmp_path / "look.html"
    assert main([str(tmp_path / "out" / "train-000001.tar"), "--out", str(page), "--studies", "3"]) == 0
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    text = page.read_text(encoding="utf-8")
    assert text.count('class="study"') == 3
    assert text.count("<i class") > 9
    key = re.findall(r"<h2>(s\d+)</h2>", text)[2]
    assert main([str(tmp_path / "out" / "train-000001.tar"), "--out", str(page), "--keys", key]) == 0
    assert re.findall(r"<h2>(s\d+)</h2>", page.read_text(encoding="utf-8")) == [key]
    assert main([str(tmp_path / "out" / "train-000009.tar"), "--out", str(page)]) == 2
    assert main([str(tmp_path / "out" / "train-000001.tar"), "--out", str(page), "--keys", "nobody"]) == 2
    assert "no study 'nobody'" in capsys.readouterr().err
