"""The pipeline with simple components: what comes out, what is left out and why, and that only settings decide it."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from pipeline_fakes import COLUMNS, GARBLED, LOSSY, SECRET, EqualTexts, Interpreter, make_components, redact, row, write_dataset

from echo_pl.data.pipeline.plan import source_stamp
from echo_pl.data.pipeline.run import PreparedCorpus, prepare
from echo_pl.data.pipeline.settings import Settings
from echo_pl.data.readers.split import patient_split
from echo_pl.data.readers.table_corpus import Columns, TableReader
from echo_pl.data.store.corpus_index import CorpusIndex
from echo_pl.data.store.shard_reader import decode_study, read_samples
from echo_pl.data.store.study import Study

SMALL = Settings(shard_size=6, work_size=8, val_share=0.2, test_share=0.2)


def studies_of(folder: Path) -> dict[str, list[Study]]:
    index = CorpusIndex.load(folder)
    return {
        split: [decode_study(raw) for shard in shards for _, raw in read_samples(folder, shard, range(shard.samples))]
        for split, shards in index.splits.items()
    }


def all_of(folder: Path) -> list[Study]:
    return [study for studies in studies_of(folder).values() for study in studies]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("source"), map(row, range(40)))


@pytest.fixture(scope="module")
def made(table, tmp_path_factory) -> tuple[Path, PreparedCorpus]:
    out = tmp_path_factory.mktemp("made") / "corpus"
    return out, prepare(out, SMALL, make_components(table))


def test_every_study_is_there_once_in_the_split_of_its_patient(made):
    out, corpus = made
    splits = studies_of(out)
    assert sorted(study.key for study in all_of(out)) == [f"s{number:04d}" for number in range(40)]
    for split, studies in splits.items():
        assert {patient_split(s.meta["patient"], val_share=0.2, test_share=0.2) for s in studies} == {split}
        assert [shard.samples for shard in corpus.index.shards(split)][:-1] == [6] * ((len(studies) - 1) // 6)
    assert corpus.card.record["entries_in_source"] == 40
    assert corpus.card.record["splits"]["train"]["studies"] == len(splits["train"])
    assert corpus.card.record["splits"]["train"]["patients"] == len({s.meta["patient"] for s in splits["train"]})
    assert not (out / ".work").exists()


def test_a_study_has_both_reports_and_says_what_was_imputed(made):
    study = next(study for study in all_of(made[0]) if study.key == "s0001")
    assert study.raw is not None
    assert study.raw.findings == "the heart is large. Seen 1 times."
    assert study.normalized.findings.startswith("the thorax is symmetric. ")
    assert "the heart is large." in study.normalized.findings
    assert study.labels == ("large heart",)
    spans = json.loads(study.meta["statements"])
    assert [section for section, _, imputed in spans if not imputed] == ["heart"]
    assert sum(length for _, length, _ in spans) + len(spans) - 1 == len(study.normalized.findings)
    assert study.images[0].size == (24, 27)


def test_the_card_counts(made):
    out, corpus = made
    card = corpus.card.record
    assert card["imputed_share"]["thorax"] == 1.0
    assert card["imputed_share"]["heart"] == 0.75
    assert card["labels"] == {"fracture": 10, "large heart": 10, "small lung": 10}
    assert card["dropped_from_reports"] == {"technique": 40}
    assert card["left_out"] == {"reject": {}, "review": {}, "filtered": {}, "image": {}}
    assert card["licence"] == "CC0"
    text = (out / "README.md").read_text()
    assert "| thorax | 100.0 % |" in text
    assert corpus.index.fingerprint in text
    assert "the heart is large" not in text


def test_the_same_command_finds_it_and_another_is_rejected(made, table):
    out, corpus = made
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = prepare(out, SMALL, make_components(table))
    assert again.found
    assert again.index == corpus.index
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(ValueError, match="seed is 0 there and 1 here"):
        prepare(out, replace(SMALL, seed=1), make_components(table))


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_place_the_work_files_or_the_workers(made, table, tmp_path):
    moved = write_dataset(tmp_path / "elsewhere", map(row, range(40)))
    prepare(tmp_path / "moved", SMALL, make_components(moved))
    assert files_of(tmp_path / "moved") == files_of(made[0])
    prepare(tmp_path / "two", SMALL, make_components(table), workers=2)
    assert files_of(tmp_path / "two") == files_of(made[0])
    prepare(tmp_path / "coarse", replace(SMALL, work_size=100), make_components(table))
    tars = {name: content for name, content in files_of(made[0]).items() if name.endswith(".tar")}
    assert {name: content for name, content in files_of(tmp_path / "coarse").items() if name.endswith(".tar")} == tars


def test_skipped_studies_are_named_and_counted_and_the_run_continues(tmp_path):
    rows = [row(number) for number in range(20)]
    rows[1] |= {"findings": GARBLED}
    rows[2] |= {"findings": f"{LOSSY} lung."}
    rows[3] |= {"id": "s0000"}
    rows[4] |= {"modality": "CT"}
    rows[5] |= {"language": "fi"}
    rows[6] |= {"impression": ""}
    table = write_dataset(tmp_path / "source", rows)
    (tmp_path / "source" / "7.png").write_bytes(b"")
    whole = (tmp_path / "source" / "8.png").read_bytes()
    (tmp_path / "source" / "8.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "source" / "9.png").unlink()
    corpus = prepare(tmp_path / "out", SMALL, make_components(table))
    assert corpus.card.record["left_out"] == {
        "reject": {
            "images: empty_file": 1,
            "images: truncated": 1,
            "read: duplicate_id": 1,
            "read: missing_image": 1,
            "read: other_language": 1,
        },
        "review": {"check: lost_number": 1, "normalize: garbled": 1},
        "filtered": {"read: incomplete_report": 1, "read: other_modality": 1},
        "image": {},
    }
    assert [corpus.card.left_out(kind) for kind in ("reject", "review", "filtered")] == [5, 2, 2]
    assert sorted(s.key for s in all_of(tmp_path / "out")) == ["s0000", *(f"s{n:04d}" for n in range(10, 20))]
    rejects = lines_of(tmp_path / "out" / "rejects.jsonl")
    assert len(rejects) == 9
    assert {one["key"] for one in rejects} == {f"s{n:04d}" for n in (0, 1, 2, 4, 5, 6, 7, 8, 9)}
    assert not any("report" in one for one in rejects)
    review = lines_of(tmp_path / "out" / "review.jsonl")
    assert [(one["key"], one["detail"]) for one in review] == [("s0001", "it has no words"), ("s0002", "lost_number, lost_device")]
    assert review[1]["report"]["original"]["findings"] == f"{LOSSY} lung."
    assert stat.S_IMODE((tmp_path / "out" / "review.jsonl").stat().st_mode) == 0o600


def test_an_image_that_cannot_be_used_is_lost_alone_and_named(tmp_path):
    names = {0: "a0.png|b0.png", 1: "a1.png|b1.png", 2: "a2.png|b2.png", 3: "a3.png|b3.png"}
    rows = [row(n, image=names.get(n, f"{n}.png"), view="PA|LATERAL" if n in names else "PA") for n in range(8)]
    table = write_dataset(tmp_path / "source", rows)
    (tmp_path / "source" / "a0.png").unlink()
    whole = (tmp_path / "source" / "b1.png").read_bytes()
    (tmp_path / "source" / "b1.png").write_bytes(whole[: len(whole) // 2])
    for name in ("a2.png", "b2.png"):
        (tmp_path / "source" / name).write_bytes(b"")
    reader = TableReader(table, columns=Columns(**COLUMNS, view="view"), name="look-alike")
    corpus = prepare(tmp_path / "out", SMALL, make_components(table, reader=reader))
    studies = {study.key: study for study in all_of(tmp_path / "out")}
    assert {key: len(study.images) for key, study in studies.items() if key < "s0004"} == {"s0000": 1, "s0001": 1, "s0003": 2}
    assert {key: study.meta["lost_images"] for key, study in studies.items() if "lost_images" in study.meta} == {
        "s0000": "1",
        "s0001": "1",
    }
    assert [studies[f"s000{n}"].meta["view"] for n in (0, 1, 3)] == ["LATERAL", "PA", "PA|LATERAL"]
    assert corpus.card.record["left_out"]["image"] == {"images: truncated": 1, "read: missing_image": 1}
    assert corpus.card.record["left_out"]["reject"] == {"images: empty_file": 1}
    assert [corpus.card.left_out(kind) for kind in ("image", "reject")] == [2, 1]
    assert corpus.card.record["notes"]["without some of its images"] == 2
    rejects = {(one["key"], one["kind"]): one["detail"] for one in lines_of(tmp_path / "out" / "rejects.jsonl")}
    assert rejects[("s0000", "image")] == "a0.png"
    assert rejects[("s0001", "image")].startswith("b1.png: ")
    assert rejects[("s0002", "reject")] == "a2.png: it has 0 bytes; b2.png: it has 0 bytes"


def test_report_text_is_in_no_log_and_no_error(tmp_path, caplog, capsys):
    caplog.set_level("DEBUG")
    rows = [row(number, impression=SECRET) for number in range(8)]
    rows[1] |= {"findings": GARBLED}
    table = write_dataset(tmp_path / "source", rows)
    prepare(tmp_path / "out", SMALL, make_components(table), progress=True)
    printed = capsys.readouterr()
    assert SECRET not in caplog.text + printed.out + printed.err
    assert SECRET not in (tmp_path / "out" / "README.md").read_text() + (tmp_path / "out" / "card.json").read_text()


def test_redaction_takes_names_numbers_and_notes_out(tmp_path):
    table = write_dataset(tmp_path / "source", [row(n, impression=f"seen by {SECRET}.") for n in range(8)])
    corpus = prepare(tmp_path / "out", replace(SMALL, redact=True), make_components(table, redact=redact))
    assert sorted(study.key for study in all_of(tmp_path / "out")) == [f"look-alike-{n:07d}" for n in range(8)]
    assert all("patient" not in study.meta for study in all_of(tmp_path / "out"))
    assert corpus.card.record["redacted_from_reports"] == {"name": 8}
    for name, content in files_of(tmp_path / "out").items():
        assert SECRET.encode() not in content, name
        assert name in ("rejects.jsonl", "review.jsonl") or b"s0003" not in content, name


def test_near_duplicates_leave_the_training_split_alone(tmp_path, table):
    settings = replace(SMALL, near_duplicates=0.9)
    corpus = prepare(tmp_path / "out", settings, make_components(table, duplicates=EqualTexts()))
    splits = studies_of(tmp_path / "out")
    assert len({study.raw.findings[:12] for study in splits["train"]}) == len(splits["train"]) == 4
    whole = CorpusIndex.load(tmp_path / "out")
    assert whole.count("val") + whole.count("test") > 4
    assert corpus.card.record["left_out"]["filtered"] == {"near-duplicates: near_duplicate": 40 - len(all_of(tmp_path / "out"))}


def test_a_seeded_share_is_translated_and_failures_stay_english(tmp_path, table):
    settings = replace(SMALL, chinese_share=0.5)
    corpus = prepare(tmp_path / "out", settings, make_components(table, translator=Interpreter()))
    chinese = [study for study in all_of(tmp_path / "out") if study.meta["language"] == "zh"]
    assert 8 <= len(chinese) <= 24
    assert all(study.normalized.impression == "正常。" and study.raw is not None for study in chinese)
    notes = corpus.card.record["notes"]
    assert corpus.card.record["languages"] == {"en": 40 - len(chinese), "zh": len(chinese)}
    assert list(notes) == ["not translated: timeout"]


def test_official_splits_are_kept_and_a_mixture_is_asked_about(tmp_path, caplog):
    rows = [row(n) | {"split": ("train", "validate", "test")[n % 3]} for n in range(12)]
    table = write_dataset(tmp_path / "source", rows)
    components = make_components(table)
    official = replace(components, reader=_reader(table, split="split"))
    corpus = prepare(tmp_path / "out", SMALL, official)
    assert {split: corpus.index.count(split) for split in corpus.index.splits} == {"train": 4, "val": 4, "test": 4}
    assert corpus.card.record["patients_in_several_splits"] == 6  # three patients, each in all three
    assert sum("val_share and test_share are not used" in record.getMessage() for record in caplog.records) == 1
    mixed = replace(components, reader=_HalfOfficial(table))
    with pytest.raises(ValueError, match="6 of 12 studies have an official split"):
        prepare(tmp_path / "mixed", SMALL, mixed)
    kept = prepare(tmp_path / "kept", replace(SMALL, splits="official"), mixed)
    assert kept.card.record["left_out"]["filtered"] == {"splits: no_official_split": 6}
    with pytest.raises(ValueError, match="no study of this dataset has an official split"):
        prepare(tmp_path / "none", replace(SMALL, splits="official"), components)


def _reader(table: Path, **columns: str):
    from echo_pl.data.readers.table_corpus import Columns, TableReader

    return TableReader(table, columns=Columns(patient="patient", **columns), name="look-alike")


class _HalfOfficial:
    name, licence, citation = "look-alike", "CC0", "nobody"

    def __init__(self, table: Path) -> None:
        self._reader = _reader(table, split="split")

    def studies(self, *, skip: int = 0):
        for place, study in enumerate(self._reader.studies(skip=skip), start=skip):
            yield study if place % 2 else replace(study, split=None)


def test_general_samples_are_mixed_into_training_by_weight(tmp_path, table, caplog):
    general = tmp_path / "general" / "samples.jsonl"
    write_dataset(general.parent, [row(n, image=f"g{n}.png") for n in range(30)])
    lines = [{"image": f"g{n}.png", "text": f"thing {n}", "prompt": "What is it?"} for n in range(30)]
    general.write_text("".join(json.dumps(line) + "\n" for line in lines))
    components = make_components(table, general=general)
    corpus = prepare(tmp_path / "out", replace(SMALL, general_weight=0.5), components)
    splits = studies_of(tmp_path / "out")
    mixed = [study for study in splits["train"] if study.meta.get("kind") == "general"]
    reports = len(splits["train"]) - len(mixed)
    assert len(mixed) == round(0.5 * reports) == corpus.card.record["general_samples"]
    assert mixed[0].meta["prompt"] == "What is it?"
    assert mixed[0].normalized.findings.startswith("thing ")
    assert mixed[0].raw is None
    assert not any(study.meta.get("kind") for split in ("val", "test") for study in splits[split])
    shown = json.loads((tmp_path / "out" / "tokenizer" / "tokenizer.json").read_text())["texts"]
    place = shown.index(mixed[0].normalized.findings)
    assert shown[place - 1] == "What is it?"
    assert len({place // 6 for place, s in enumerate(splits["train"]) if s.meta.get("kind")}) > 1, "in one shard only"
    assert "all of them are used" not in caplog.text

    general.write_text("no json\n" + json.dumps({"image": "../source.png", "text": "x"}) + "\n" + json.dumps(lines[0]) + "\n")
    corpus = prepare(tmp_path / "few", replace(SMALL, general_weight=2.0), components)
    assert corpus.card.record["general_samples"] == 1
    assert corpus.card.record["left_out"]["reject"] == {"general: damaged_line": 1, "general: outside_folder": 1}
    assert "3 general samples" in caplog.text


def test_large_images_are_reduced(tmp_path):
    table = write_dataset(tmp_path / "source", map(row, range(4)), size=100)
    prepare(tmp_path / "out", replace(SMALL, max_pixels=2500), make_components(table))
    assert all(2300 < s.images[0].width * s.images[0].height <= 2500 for s in all_of(tmp_path / "out"))


def test_a_source_that_changes_ends_the_run(tmp_path, table, monkeypatch):
    source = write_dataset(tmp_path / "source", map(row, range(12)))
    components = make_components(source)

    def tear(texts, folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        prepare(tmp_path / "out", SMALL, replace(components, tokenizer=tear))
    write_dataset(tmp_path / "source", map(row, range(13)))
    with pytest.raises(ValueError, match=r"unfinished corpus made with other settings: source is .* there and .* here"):
        prepare(tmp_path / "out", SMALL, components)


def test_every_byte_of_every_table_counts(tmp_path):
    table = tmp_path / "source" / "metadata" / "rows.csv"
    table.parent.mkdir(parents=True)
    content = bytearray(b"0" * (5 << 20))
    table.write_bytes(content)
    (tmp_path / "source" / "images.tar.gz").write_bytes(b"1")
    before = source_stamp(tmp_path / "source"), source_stamp(table)
    (tmp_path / "source" / "images.tar.gz").unlink()  # unpacked, and no longer needed
    assert (source_stamp(tmp_path / "source"), source_stamp(table)) == before
    content[len(content) // 2] = 49
    table.write_bytes(content)
    assert source_stamp(tmp_path / "source") != before[0]
    assert source_stamp(table) != before[1]


def test_a_finished_corpus_without_one_of_its_shards_is_not_found(table, tmp_path):
    prepare(tmp_path / "out", SMALL, make_components(table))
    (tmp_path / "out" / "train-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"train-000001.tar is gone"):
        prepare(tmp_path / "out", SMALL, make_components(table))


def test_work_that_was_to_be_kept_is_kept_by_a_rerun(table, tmp_path):
    prepare(tmp_path / "out", SMALL, make_components(table), keep_work=True)
    prepare(tmp_path / "out", SMALL, make_components(table), keep_work=True)
    assert (tmp_path / "out" / ".work" / "listed").is_dir()
    prepare(tmp_path / "out", SMALL, make_components(table))
    assert not (tmp_path / "out" / ".work").exists()


def test_notes_of_a_dataset_do_not_pass_for_those_of_the_pipeline(table, tmp_path):
    prepare(tmp_path / "out", SMALL, replace(make_components(table), reader=_Noted(table)))
    for study in all_of(tmp_path / "out"):
        assert study.meta["source_kind"] == "general"
        assert study.meta["source_language"] == "zh"
        assert (study.meta.get("kind"), study.meta["language"], study.meta["age"]) == (None, "en", "50")


class _Noted:
    name, licence, citation = "look-alike", "CC0", "nobody"

    def __init__(self, table: Path) -> None:
        self._reader = _reader(table)

    def studies(self, *, skip: int = 0):
        for study in self._reader.studies(skip=skip):
            yield replace(study, meta={"kind": "general", "language": "zh", "age": "50"})


def test_bars_write_little_into_a_log(table, tmp_path, capsys):
    prepare(tmp_path / "out", replace(SMALL, work_size=1), make_components(table), progress=True)
    printed = capsys.readouterr().err
    assert "shards" in printed
    assert "40/40" in printed
    assert printed.count("\r") < 20  # of 40 files in each of three steps


def test_a_folder_with_other_things_is_not_written_to(tmp_path, table):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes.txt'"):
        prepare(tmp_path, SMALL, make_components(table))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    table = write_dataset(tmp_path / "source", [row(n, findings=GARBLED) for n in range(4)])
    with pytest.raises(ValueError, match=r"not one study is left to write \(normalize: garbled 4\)"):
        prepare(tmp_path / "out", SMALL, make_components(table))
    one_section = write_dataset(tmp_path / "one_section", [row(n, impression="") for n in range(4)])
    with pytest.raises(ValueError, match=r"read: incomplete_report 4; .*--keep-incomplete"):
        prepare(tmp_path / "none", SMALL, make_components(one_section))
    prepare(tmp_path / "kept", replace(SMALL, keep_incomplete=True), make_components(one_section))
    assert len(all_of(tmp_path / "kept")) == 4


@pytest.mark.parametrize(
    ("setting", "value"),
    [("shard_size", 0), ("seed", -1), ("val_share", 0.95), ("near_duplicates", 1.5), ("chinese_share", 2.0), ("splits", "random")],
)
def test_settings_out_of_range_are_rejected(setting, value):
    with pytest.raises(ValueError, match=setting):
        replace(SMALL, **{setting: value})
