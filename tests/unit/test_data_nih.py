"""The reader of NIH ChestX-ray14: on a small folder of its kind, and on real images where there are some."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import command
from PIL import Image

from echo_pl.data.pipeline.make_corpus import make_nih
from echo_pl.data.store.corpus_index import CorpusIndex
from echo_pl.data.store.study import VERSIONS
from echo_pl.data.synthetic.nih import NIHCorpus, nih_judge

main = command("corpus", "make")


@pytest.fixture
def source(tmp_path) -> Path:
    """Twenty images of ten patients."""
    folder = tmp_path / "nih"
    (folder / "images").mkdir(parents=True)
    choices = [["No Finding"], ["Effusion", "Mass"], ["Pleural_Thickening"], ["Cardiomegaly", "Edema", "Hernia"]]
    rows = []
    for i in range(20):
        name = f"{i // 2:08d}_{i % 2:03d}.png"
        Image.fromarray(np.full((64, 64), i * 10, dtype=np.uint8)).save(folder / "images" / name)
        rows.append({"image": name, "labels": choices[i % 4], "view": "PA", "age": "50", "patient": str(i // 2)})
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def test_split_by_patient(source):
    corpus = NIHCorpus(source)
    patients = {split: {study.meta["patient"] for study in corpus.studies(split)} for split in corpus.counts}
    assert sum(len(group) for group in patients.values()) == 10 == len(set.union(*patients.values()))
    assert corpus.counts == {"train": 14, "val": 2, "test": 4}
    assert NIHCorpus(source).counts == corpus.counts


@pytest.mark.parametrize("version", VERSIONS)
def test_round_trip(source, version):
    judge = nih_judge(version)
    for study in NIHCorpus(source, wording="even").studies("train"):
        parsed = judge.parse(study.report(version))
        assert parsed.findings == frozenset(study.labels)
        assert parsed.well_formed


def edit(source: Path, **change: object) -> None:
    lines = (source / "manifest.jsonl").read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), **change})
    (source / "manifest.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["Gout"]}, "line 2 of .* has label 'Gout', known are"),
        ({"image": "../../x.png"}, "line 2 of .* names a file outside images/"),
        ({"labels": None}, "line 2 of .* is damaged"),
    ],
)
def test_bad_manifest(source, change, message):
    edit(source, **change)
    with pytest.raises(ValueError, match=message):
        NIHCorpus(source)


def test_bad_image_is_named(source, tmp_path, capsys):
    (source / "images" / "00000000_000.png").write_bytes(b"no image")
    status = main(["nih", "--source", str(source), "--out", str(tmp_path / "out")])
    assert status == 2
    assert "00000000_000.png cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out" / "index.json").exists()


def test_missing_source(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no NIH images in"):
        NIHCorpus(tmp_path)
    assert main(["nih", "--source", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "a folder with manifest.jsonl and images/ is expected there" in capsys.readouterr().err


def test_bad_shares(source):
    with pytest.raises(ValueError, match="val_share and test_share must be positive"):
        NIHCorpus(source, val_share=0.6, test_share=0.4)


def test_real_images(shared_data, tmp_path):
    source = shared_data / "nih_64"
    if not source.is_dir():
        pytest.skip(f"no {source}")
    out = make_nih(source, tmp_path / "nih", progress=False)
    index = CorpusIndex.load(out)
    assert sum(index.count(split) for split in ("train", "val", "test")) == 735
    corpus = NIHCorpus(source)
    judge = nih_judge()
    for split in corpus.counts:
        for study in corpus.studies(split):
            assert judge.parse(study.normalized).well_formed
            assert judge.parse(study.normalized).findings == frozenset(study.labels)
