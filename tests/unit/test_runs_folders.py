"""Run folders: what they say of themselves, and which of them the next stage finds."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from echo_pl.io.atomic import replace_path
from echo_pl.io.run_folders import (
    FINAL,
    LAST,
    RunInfo,
    check_free_disk,
    newest,
    newest_unfinished,
    now_text,
    read_info,
    write_info,
)


def make(outputs: Path, name: str, files: tuple[str, ...] = (FINAL,), **changes) -> Path:
    folder = outputs / "runs" / name
    (folder / "checkpoints").mkdir(parents=True)
    for file in files:
        (folder / "checkpoints" / file).touch()
    values = {"stage": "rad", "backbone": "Tiny", "block_size": 8, "data": "synthetic", "status": "finished"}
    values |= {"time": "2026-01-01T00:00:00", "start": None, "chain": "c", "mlflow_run_id": None}
    write_info(folder, RunInfo(**{**values, **changes}))
    return folder


def found(outputs: Path, *stages: str, block_size: int | None = None) -> str | None:
    pair = newest(outputs, stages, "Tiny", "synthetic", block_size)
    return None if pair is None else pair[0].name


def test_a_record_is_read_back(tmp_path):
    folder = make(tmp_path, "one", mlflow_run_id="abc")
    info = read_info(folder)
    assert (info.stage, info.block_size, info.mlflow_run_id) == ("rad", 8, "abc")
    assert not list(folder.glob("*.part"))
    assert read_info(tmp_path) is None


def test_the_newest_by_time_wins_and_not_by_name(tmp_path):
    make(tmp_path, "b", time="2026-01-02T00:00:00")
    make(tmp_path, "a", time="2026-01-03T00:00:00")
    make(tmp_path, "c", time="2026-01-01T00:00:00")
    assert found(tmp_path, "rad") == "a"


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "pretrain"},
        {"backbone": "Other"},
        {"data": "nih"},
        {"status": "running"},
        {"status": "failed"},
        {"block_size": 4},
        {"files": (LAST,)},
    ],
)
def test_runs_that_do_not_fit_are_passed_over(tmp_path, changes):
    make(tmp_path, "fits", time="2026-01-01T00:00:00")
    make(tmp_path, "newer", **{"time": "2026-01-02T00:00:00", **changes})
    assert found(tmp_path, "rad", block_size=8) == "fits"


def test_any_block_size_will_do_unless_one_is_asked_for(tmp_path):
    make(tmp_path, "four", block_size=4)
    assert found(tmp_path, "rad") == "four"
    assert found(tmp_path, "rad", block_size=8) is None


def test_stages_are_preferred_in_order(tmp_path):
    make(tmp_path, "old-rad", time="2026-01-01T00:00:00")
    make(tmp_path, "new-pretrain", stage="pretrain", time="2026-01-02T00:00:00")
    assert found(tmp_path, "rad", "pretrain") == "old-rad"
    assert found(tmp_path, "dcd", "pretrain") == "new-pretrain"
    assert found(tmp_path / "nowhere", "rad") is None


@pytest.mark.parametrize("content", ["{", "[]", '{"stage": "rad"}'])
def test_an_unreadable_record_is_reported_and_skipped(tmp_path, caplog, content):
    make(tmp_path, "good", time="2026-01-01T00:00:00")
    (make(tmp_path, "bad", time="2026-01-02T00:00:00") / "run.json").write_text(content, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert found(tmp_path, "rad") == "good"
    assert "run.json is not readable and is ignored" in caplog.text


def test_what_did_not_finish_can_be_resumed(tmp_path):
    make(tmp_path, "done", files=(FINAL, LAST), time="2026-01-09T00:00:00")
    make(tmp_path, "old", files=(LAST,), status="failed", time="2026-01-01T00:00:00")
    newer = make(tmp_path, "killed", files=(LAST,), status="running", time="2026-01-02T00:00:00")
    make(tmp_path, "nothing-yet", files=(), status="failed", time="2026-01-03T00:00:00")
    make(tmp_path, "other-stage", files=(LAST,), status="failed", stage="dcd", time="2026-01-04T00:00:00")
    assert newest_unfinished(tmp_path, "rad", "Tiny", "synthetic") == newer / "checkpoints" / LAST
    assert newest_unfinished(tmp_path, "pretrain", "Tiny", "synthetic") is None


def test_too_little_disk_is_an_error_before_anything_begins(tmp_path, monkeypatch):
    check_free_disk(tmp_path / "outputs", 0.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2.5e9))
    check_free_disk(tmp_path, 2.4)
    with pytest.raises(OSError, match=r"only 2\.50 GB free on the disk of .*, min_free_gb is 3: .* lower min_free_gb"):
        check_free_disk(tmp_path, 3)


def test_times_sort(monkeypatch):
    assert now_text() <= now_text()


def put(path: Path, kind: str, content: str) -> Path:
    if kind == "folder":
        path.mkdir()
        (path / "inside").write_text(content)
    else:
        path.write_text(content)
    return path


@pytest.mark.parametrize("place", ["file", "folder", "nothing"])
@pytest.mark.parametrize("new", ["file", "folder"])
def test_a_file_or_folder_takes_the_place_of_another(tmp_path, new, place):
    target = tmp_path / "place"
    if place != "nothing":
        put(target, place, "old")
    put(tmp_path / "place.old", "folder", "left by a process that was killed")
    replace_path(put(tmp_path / "new", new, "new"), target)
    assert (target / "inside" if new == "folder" else target).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
