"""The command that makes a corpus: with the real normalizer, tokenizer and data module; killed, stopped, misused."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import command
from endpoint_stub import EndpointStub, Reply, says
from pipeline_fakes import row, write_dataset

import echo_pl.__main__
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.data.store.corpus_index import CorpusIndex
from echo_pl.data.store.shard_reader import decode_study, read_samples
from echo_pl.data.store.study import Study
from echo_pl.reports.embeddings import NgramEmbedder
from echo_pl.reports.regions import REGION_NAMES

pytestmark = pytest.mark.slow

main = command("corpus", "prepare")

FINDINGS = (
    "Heart size is normal. Lungs are clear. No pneumothorax.",
    "Small left pleural effusion. Heart is mildly enlarged.",
    "Right lower lobe consolidation. No effusion. Bones are intact.",
    "Left chest tube is in place. No pneumothorax.",
    "There is a 7 mm nodule in the right upper lobe.",
)
IMPRESSIONS = (
    "Normal chest.",
    "Small left pleural effusion.",
    "Right lower lobe pneumonia.",
    "Left chest tube without pneumothorax.",
    "Nodule in the right upper lobe.",
)
OPTIONS = [
    *("--reader", "table", "--reader-option", "columns.patient=patient", "--reader-option", "name=look-alike"),
    *("--shard-size", "16", "--val-share", "0.15", "--test-share", "0.15", "--vocab-size", "400", "--quiet"),
]


def report_row(number: int, **values: str) -> dict[str, str]:
    kind = number % len(FINDINGS)
    return row(number) | {"findings": FINDINGS[kind], "impression": IMPRESSIONS[kind]} | values


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def studies_of(folder: Path) -> list[Study]:
    index = CorpusIndex.load(folder)
    shards = [shard for split in index.splits.values() for shard in split]
    return [decode_study(raw) for shard in shards for _, raw in read_samples(folder, shard, range(shard.samples))]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("source"), map(report_row, range(160)), size=64)


@pytest.fixture(scope="module")
def made(table, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "corpus"
    assert main([*OPTIONS, "--source", str(table), "--out", str(out), "--workers", "0"]) == 0
    return out


def test_every_report_states_every_region_and_keeps_its_findings(made):
    for study in studies_of(made):
        sections = [section for section, _, _ in json.loads(study.meta["statements"])]
        assert set(REGION_NAMES) <= set(sections)
        assert study.raw is not None
        for kept in ("effusion", "7 mm nodule", "chest tube", "consolidation"):
            if kept in study.raw.findings and "No effusion" not in study.raw.findings:
                assert kept in study.normalized.findings.lower()


def test_the_data_module_reads_it_as_it_is(made):
    data = ReportDataModule(root=made, batch_size=4, max_response_tokens=600, length_window=2)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.pixel_values.shape[0] > 0
    text = data.processor.detokenize(batch.response_ids_BR[0])
    assert text.startswith("Findings: ")
    assert " Impression: " in text


def test_found_again_or_rejected_with_the_difference(made, table, capsys):
    before = contents(made)
    assert main([*OPTIONS, "--source", str(table), "--out", str(made), "--workers", "0"]) == 0
    assert "found in" in capsys.readouterr().out
    assert main([*OPTIONS, "--source", str(table), "--out", str(made), "--max-pixels", "900"]) == 2
    assert "max_pixels is 2250000 there and 900 here" in capsys.readouterr().err
    assert contents(made) == before


def test_rejects_and_reviews_give_status_three_and_are_named(tmp_path, capsys):
    rows = [report_row(number) for number in range(20)]
    rows[2] |= {"findings": "Les poumons sont clairs et le coeur est normal.", "impression": "Radiographie normale du thorax."}
    table = write_dataset(tmp_path / "source", rows)
    (tmp_path / "source" / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main([*OPTIONS, "--source", str(table), "--out", str(tmp_path / "out"), "--workers", "0"]) == 3
    printed = capsys.readouterr()
    assert "rejected: 1, see rejects.jsonl (images: " in printed.out
    assert "to review: 1, see review.jsonl (" in printed.out
    assert "poumons" not in printed.out + printed.err


def test_redaction(tmp_path, capsys):
    rows = [report_row(n, findings=f"{FINDINGS[n % 5]} Discussed with Dr. Zebulon Quist at 10:15 am.") for n in range(10)]
    table = write_dataset(tmp_path / "source", rows)
    main([*OPTIONS, "--redact", "--source", str(table), "--out", str(tmp_path / "out"), "--workers", "0"])
    assert not any(b"Quist" in content for content in contents(tmp_path / "out").values())
    assert json.loads((tmp_path / "out" / "card.json").read_text())["redacted_from_reports"]["name"] > 0


def test_near_duplicates_leave_one_of_each(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("echo_pl.reports.embeddings.default_embedder", NgramEmbedder)  # the other one takes seconds to load
    all_train = ["--val-share", "0", "--test-share", "0"]
    command = [*OPTIONS, *all_train, "--near-duplicates", "0.97", "--source", str(table), "--out", str(tmp_path / "out")]
    assert main([*command, "--workers", "0"]) == 0
    assert f"filtered out: {160 - len(FINDINGS)}, see rejects.jsonl (near-duplicates: " in capsys.readouterr().out
    assert {study.raw.findings for study in studies_of(tmp_path / "out") if study.raw is not None} == set(FINDINGS)


def test_a_language_model_translates_and_a_rerun_asks_nothing(table, tmp_path, capsys):
    def answer(request: dict, number: int) -> Reply:
        sentences = json.loads(re.search(r"\[.*\]", request["messages"][1]["content"], re.DOTALL)[0])
        return says(json.dumps({"translations": [_chinese(one) for one in sentences]}, ensure_ascii=False))

    with EndpointStub(answer) as stub:
        asked = ["--chinese-share", "0.5", "--endpoint", stub.url, "--model", "m", "--answers", str(tmp_path / "answers")]
        command = [*OPTIONS, *asked, "--source", str(table), "--workers", "0"]
        assert main([*command, "--out", str(tmp_path / "one")]) == 0
        requests = len(stub.requests)
        assert requests > 0
        assert main([*command, "--out", str(tmp_path / "two")]) == 0
        assert len(stub.requests) == requests
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    languages = json.loads((tmp_path / "one" / "card.json").read_text())["languages"]
    assert languages["zh"] > 20
    assert languages["en"] > 20


def _chinese(sentence: str) -> str:
    sides = "".join({"left": "左", "right": "右"}[side] for side in re.findall(r"left|right", sentence.lower()))
    return f"{sides}肺所见{''.join(re.findall(r'[0-9]+', sentence))}。"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reader", "table"], "needs --source"),
        (["--reader", "table", "--source", "nowhere"], "nowhere"),
        (["--reader", "table", "--source", "TABLE", "--reader-option", "colour=red"], "no option 'colour'"),
        (["--reader", "table", "--source", "TABLE", "--reader-option", "red"], "must be NAME=VALUE"),
        (["--reader", "table", "--source", "TABLE", "--engine", "llm"], "--endpoint and --model"),
        (["--reader", "table", "--source", "TABLE", "--general-weight", "1"], "general_weight"),
        (["--reader", "table", "--source", "TABLE", "--shard-size", "0"], "shard_size"),
        (["--reader", "table", "--source", "TABLE", "--tokenizer", "nowhere"], "nowhere"),
        (
            ["--reader", "table", "--source", "TABLE", "--reader-option", "name=a", "--reader-option", "name.b=c"],
            "it has no 'name.b'",
        ),
        (["--reader", "nih_chestxray14", "--source", "TABLE", "--reader-option", "val_share=some"], "val_share must be a number"),
        (["--reader", "mimic_cxr", "--source", "TABLE", "--reader-option", "reports=elsewhere"], "MIMIC-CXR-JPG"),
        (["--reader", "iu_installed", "--source", "TABLE"], "leave --source out"),
    ],
)
def test_bad_usage_is_reported_in_one_line(table, tmp_path, capsys, arguments, message):
    given = [str(table) if one == "TABLE" else one for one in arguments]
    assert main([*given, "--out", str(tmp_path / "out"), "--quiet", "--workers", "0"]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out" / "index.json").exists()


def test_source_and_images_may_move_together(tmp_path, capsys):
    """Images beside the source: neither the place of both nor the way it is written is part of the corpus."""
    write_dataset(tmp_path / "here" / "png", map(report_row, range(12)), size=32)
    (tmp_path / "here" / "tables").mkdir()
    (tmp_path / "here" / "png" / "table.csv").rename(tmp_path / "here" / "tables" / "table.csv")
    options = [*OPTIONS, "--workers", "0", "--reader-option", "licence=2024"]
    for place in ("here", "there"):
        given = [
            "--source",
            str(tmp_path / place / "tables" / "table.csv"),
            "--reader-option",
            f"images={tmp_path / place / 'png'}",
        ]
        assert main([*options, *given, "--out", str(tmp_path / f"from_{place}")]) == 0
        (tmp_path / "here").rename(tmp_path / "there") if place == "here" else None
    assert contents(tmp_path / "from_here") == contents(tmp_path / "from_there")
    assert str(tmp_path).encode() not in b"".join(contents(tmp_path / "from_here").values())


def test_the_program_has_it_as_a_command(tmp_path, made, capsys, monkeypatch):
    def ended(*arguments: str) -> object:
        monkeypatch.setattr(sys, "argv", ["echo-pl", *arguments])
        with pytest.raises(SystemExit) as left:
            echo_pl.__main__.main()
        return left.value.code

    assert ended("prepare", "--help") == 0
    shown = capsys.readouterr()
    assert "Usage: echo-pl corpus prepare" in shown.out
    assert shown.err == "note: echo-pl prepare is now echo-pl corpus prepare; the old spelling works until 0.3\n"
    assert ended("prepare", "--reader", "table", "--out", str(tmp_path / "out")) == 2
    assert "echo-pl corpus prepare: the reader table needs --source" in capsys.readouterr().err
    assert ended("view", str(made / "train-000000.tar"), "--out", str(tmp_path / "page.html")) == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count('class="study"') == 16


def start(table: Path, out: Path) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-X", "faulthandler", "-m", "echo_pl", "corpus", "prepare"]
    command = [*program, *OPTIONS, "--source", str(table), "--out", str(out), "--workers", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def end_of(process: subprocess.Popen[bytes]) -> str:
    """Standard error of a process to the end of it and its children."""
    try:
        return process.communicate(timeout=180)[1].decode()
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # it prints the stacks of its threads
        pytest.fail(f"it does not end: {process.communicate(timeout=60)[1].decode()}")


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the run has come so far."""
    deadline = time.monotonic() + 300
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("seed", range(2))
def test_killed_with_two_workers_and_run_again_it_is_the_same(table, made, tmp_path, seed):
    rng, out = random.Random(seed), tmp_path / "out"
    stages = [".work/plan.json", ".work/listed/done.json", ".work/normalized", ".work/shards", "train-000000.tar"]
    process = start(table, out)
    wait_for(out / rng.choice(stages), process)
    time.sleep(rng.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    end_of(process)
    killed = not (out / "index.json").exists()
    assert main([*OPTIONS, "--source", str(table), "--out", str(out), "--workers", "0"]) == 0
    assert contents(out) == contents(made), f"killed before the end: {killed}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_and_the_next_continues(table, made, tmp_path, number):
    process = start(table, tmp_path / "out")
    wait_for(tmp_path / "out" / ".work" / "listed" / "done.json", process)
    process.send_signal(number)
    printed = end_of(process)
    assert process.returncode == 128 + number
    assert (
        printed.strip() == f"echo-pl corpus prepare: ended by {signal.Signals(number).name}; run the same command again to continue"
    )
    assert main([*OPTIONS, "--source", str(table), "--out", str(tmp_path / "out"), "--workers", "0"]) == 0
    assert contents(tmp_path / "out") == contents(made)


def test_a_signal_that_breaks_a_librarys_own_code_ends_the_run_as_any_signal(table, tmp_path, capsys, monkeypatch):
    def broken(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("the connection was reset")

    monkeypatch.setattr("echo_pl.data.pipeline.run.prepare", broken)
    assert main([*OPTIONS, "--source", str(table), "--out", str(tmp_path / "out"), "--workers", "0"]) == 128 + signal.SIGTERM
    assert "ended by SIGTERM; run the same command again to continue" in capsys.readouterr().err


def test_a_full_disk_is_reported_and_the_run_continues_when_there_is_room(table, made, tmp_path, capsys, monkeypatch):
    sync, calls = os.fsync, 0

    def full(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    command = [*OPTIONS, "--source", str(table), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main(command) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert main(command) == 0
    assert contents(tmp_path / "out") == contents(made)


def test_real_studies(shared_data, tmp_path):
    folder = shared_data / "iu_xray_mini"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    options = ["rows=image", "columns.key=study", f"images={folder / 'images'}", "name=iu_mini"]
    given = [part for option in options for part in ("--reader-option", option)]
    where = ["--reader", "table", "--source", str(folder / "manifest.jsonl"), "--out", str(tmp_path / "out")]
    status = main([*where, *given, "--val-share", "0", "--test-share", "0", "--max-pixels", "250000", "--workers", "0", "--quiet"])
    assert status in (0, 3)
    studies = studies_of(tmp_path / "out")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert len(studies) + sum(card["left_out"]["review"].values()) == 5
    assert all(image.width * image.height <= 250_000 for study in studies for image in study.images)
    shutil.rmtree(tmp_path / "out")
