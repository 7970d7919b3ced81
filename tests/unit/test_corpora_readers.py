"""Every reader on a small folder of its dataset's layout: what a study is made of, in which order, from which place on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import lookalikes
import pytest

from echo_pl.data.readers.chexpert_plus import CheXpertPlusReader
from echo_pl.data.readers.echo_json import ECHOJSONReader
from echo_pl.data.readers.iu_xray import InstalledOpenIReader, KaggleIUReader, OpenIReader, R2GenReader
from echo_pl.data.readers.mimic_cxr import MIMICCXRReader
from echo_pl.data.readers.nih_chestxray14 import NIHChestXray14Reader
from echo_pl.data.readers.padchest_gr import PadChestGRReader
from echo_pl.data.readers.reader import CorpusReader, Reject, SourceStudy
from echo_pl.data.readers.readers import READERS
from echo_pl.data.readers.rexgradient import ReXGradientReader
from echo_pl.data.readers.table_corpus import TableReader
from echo_pl.data.synthetic.nih import nih_judge
from echo_pl.reports.report import RawReport
from echo_pl.structs import ReportText


def make_reader(name: str, folder: Path, studies: int) -> CorpusReader:
    """Reader of a look-alike of so many studies."""
    name = name.replace("iu_installed", "iu_openi")
    return lookalikes.open_reader(name, folder, lookalikes.BUILDERS[name](folder, studies))


def studies_of(reader: CorpusReader) -> list[SourceStudy]:
    items = list(reader.studies())
    assert not [item for item in items if isinstance(item, Reject)]
    return [item for item in items if isinstance(item, SourceStudy)]


@pytest.mark.parametrize("name", READERS)
def test_all_studies_with_images_in_the_same_order(name, tmp_path):
    reader = make_reader(name, tmp_path, 7)
    studies = studies_of(reader)
    assert len({study.key for study in studies}) == len(studies) == 7
    assert all(study.images and all(image.path.is_file() for image in study.images) for study in studies)
    assert all(set(study.key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") for study in studies)
    assert studies_of(reader) == studies
    assert reader.name == name.replace("iu_installed", "iu_openi")
    assert reader.licence
    assert reader.citation or name == "table"


@pytest.mark.parametrize("name", READERS)
def test_skipping_gives_the_rest(name, tmp_path):
    reader = make_reader(name, tmp_path, 7)
    whole = list(reader.studies())
    for skip in (0, 1, 4, 7, 9):
        assert list(reader.studies(skip=skip)) == whole[skip:]
    with pytest.raises(ValueError, match="skip must not be negative, got -1"):
        next(reader.studies(skip=-1))


@pytest.mark.parametrize("name", READERS)
def test_nothing_there(name, tmp_path):
    if name == "iu_installed":
        pytest.skip("it has no folder")
    with pytest.raises(FileNotFoundError, match="no "):
        READERS[name](tmp_path / "absent")


def test_openi(tmp_path):
    first, *_ = studies_of(make_reader("iu_openi", tmp_path, 2))
    assert (first.key, first.patient, first.split) == ("CXR1", "CXR1", None)
    assert [image.path.name for image in first.images] == ["CXR1_IM-0001-1001.png", "CXR1_IM-0001-2001.png"]
    assert first.report.findings == "The heart is not enlarged. Both lungs are clear; study 1."
    assert (first.report.impression, first.report.indication, first.report.comparison) == (
        "No acute abnormality in study 1.",
        "Cough",
        "None.",
    )
    assert first.labels == ("normal", "Opacity/lung/right")
    assert first.meta == {"mesh_automatic": "heart", "caption": "PA and lateral"}


def test_openi_archive_reads_as_its_folder(tmp_path):
    reports, images = lookalikes.build_openi(tmp_path, 3)
    members = {f"ecgen-radiology/{path.name}": path.read_bytes() for path in sorted(reports.glob("*.xml"))}
    archive = lookalikes.build_openi_archive(tmp_path / "NLMCXR_reports.tgz", members)
    assert studies_of(OpenIReader(archive, images=images)) == studies_of(OpenIReader(reports, images=images))
    text_only = studies_of(OpenIReader(archive))
    assert [study.images for study in text_only] == [()] * 3


def test_openi_inside_an_installed_package(tmp_path, monkeypatch):
    content = lookalikes.openi_xml(5).encode()
    lookalikes.build_openi_archive(tmp_path / "torchxrayvision" / "data" / "NLMCXR_reports.tgz", {"5.xml": content})
    # Importing the package would fail here: it must be found without.
    lookalikes.put(tmp_path / "torchxrayvision" / "__init__.py", "raise ImportError('must not be imported')")
    record = "torchxrayvision/data/NLMCXR_reports.tgz,,\ntorchxrayvision/__init__.py,,\n"
    lookalikes.put(tmp_path / "torchxrayvision-1.0.dist-info" / "RECORD", record)
    lookalikes.put(
        tmp_path / "torchxrayvision-1.0.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: torchxrayvision\nVersion: 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [study.key for study in studies_of(InstalledOpenIReader())] == ["CXR5"]


def test_openi_package_not_installed(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(FileNotFoundError, match="pip install --no-deps torchxrayvision"):
        InstalledOpenIReader()


def test_r2gen(tmp_path):
    studies = studies_of(R2GenReader(lookalikes.build_r2gen(tmp_path, 4)))
    assert [study.split for study in studies] == ["train", "train", "val", "test"]
    assert (studies[0].key, studies[0].patient) == ("CXR0_IM-0001", "CXR0")
    assert [image.path.relative_to(tmp_path / "images").as_posix() for image in studies[0].images] == [
        "CXR0_IM-0001/0.png",
        "CXR0_IM-0001/1.png",
    ]


def test_kaggle_has_the_keys_of_openi(tmp_path):
    first, *_ = studies_of(KaggleIUReader(lookalikes.build_kaggle(tmp_path)))
    assert first.key == "CXR1"
    assert [image.view for image in first.images] == ["Frontal", "Lateral"]
    assert first.labels == ("Opacity/lung", "normal")


def test_mimic(tmp_path):
    studies = studies_of(MIMICCXRReader(lookalikes.build_mimic(tmp_path, 6)))
    first = studies[0]
    assert (first.key, first.patient) == ("50000000", "10000000")
    assert [image.view for image in first.images] == ["PA", "LATERAL"]
    assert first.images[0].path.relative_to(tmp_path).as_posix() == "files/p10/p10000000/s50000000/00000000-000000pa.jpg"
    assert (first.report.findings, first.report.impression) == (
        "The heart is not enlarged. Both lungs are clear; study 0.",
        "No acute abnormality in study 0.",
    )
    assert (first.report.indication, first.report.technique, first.report.comparison) == (
        "___F with cough // pneumonia?",
        "Chest PA and lateral",
        "___",
    )
    assert (first.labels, first.meta["uncertain_labels"]) == (("Edema",), "Pneumonia")
    assert Counter(study.split for study in studies) == {"train": 2, "val": 2, "test": 2}


def test_mimic_reports_elsewhere(tmp_path):
    images = lookalikes.build_mimic(tmp_path / "jpg", 2)
    for report in sorted((images / "files").rglob("*.txt")):
        lookalikes.put(tmp_path / "txt" / report.relative_to(images), report.read_bytes())
        report.unlink()
    assert len(studies_of(MIMICCXRReader(images, reports=tmp_path / "txt"))) == 2


def test_chexpert_plus_gathers_rows_that_do_not_stand_together(tmp_path):
    studies = studies_of(CheXpertPlusReader(lookalikes.build_chexpert_plus(tmp_path, 5)))
    assert [study.key for study in studies[:3]] == ["patient00000-study1", "patient00000-study2", "patient00001-study1"]
    assert [[image.view for image in study.images] for study in studies] == [["AP", "Lateral"]] * 5
    assert [study.split for study in studies] == ["train"] * 4 + ["val"]
    assert studies[0].report.impression == "1. No acute abnormality in study 0. 2. Second line."
    assert studies[0].meta == {"age": "61.0", "sex": "Female", "order": "1"}


def test_chexpert_plus_dicom(tmp_path):
    folder = lookalikes.build_chexpert_plus(tmp_path, 1)
    for path in (folder / "PNG").rglob("*.png"):
        lookalikes.put(folder / "DICOM" / path.relative_to(folder / "PNG").with_suffix(".dcm"), b"x")
    (study,) = studies_of(CheXpertPlusReader(folder, files="dicom"))
    assert [image.path.suffix for image in study.images] == [".dcm", ".dcm"]


@pytest.mark.parametrize(("files", "folder"), [("dicom", "DICOM/Uncompressed"), ("jpg", "CheXpert-v1.0-small"), ("png", "PNG/PNG")])
def test_chexpert_plus_as_its_archives_unpack(tmp_path, files, folder):
    root = lookalikes.build_chexpert_plus(tmp_path, 1)
    suffix = {"dicom": ".dcm"}.get(files, f".{files}")
    for path in sorted((root / "PNG").rglob("*.png")):
        lookalikes.put(root / folder / path.relative_to(root / "PNG").with_suffix(suffix), b"x")
    (study,) = studies_of(CheXpertPlusReader(root, files=files))
    assert [image.path.suffix for image in study.images] == [suffix] * 2
    assert study.images[0].root == root / folder


def test_rexgradient_in_two_folders_and_without_a_split(tmp_path, caplog):
    root = lookalikes.build_rexgradient(tmp_path / "download", 3)
    whole = studies_of(ReXGradientReader(root))
    (root / "deid_png").rename(tmp_path / "deid_png")
    (root / "metadata" / "test_metadata_view_position.json").unlink()
    assert not caplog.records
    reader = ReXGradientReader(root, images=tmp_path / "deid_png")
    assert [record.getMessage() for record in caplog.records] == [
        f"{root / 'metadata'} has no metadata of test: its studies are omitted"
    ]
    found = studies_of(reader)
    assert [study.key for study in found] == [study.key for study in whole[:2]]
    assert found[0].images[0].path == tmp_path / "deid_png" / whole[0].images[0].path.relative_to(root / "deid_png")


def test_rexgradient_with_null_for_a_view(tmp_path):
    root = lookalikes.build_rexgradient(tmp_path, 1)
    path = root / "metadata" / "train_metadata_view_position.json"
    path.write_text(path.read_text().replace('"PA"', "null").replace('"Cough"', "NaN"))
    (study,) = studies_of(ReXGradientReader(root))
    assert [image.view for image in study.images] == ["", "LATERAL"]
    assert study.report.indication == ""


def test_rexgradient(tmp_path):
    studies = studies_of(ReXGradientReader(lookalikes.build_rexgradient(tmp_path, 3)))
    assert [study.split for study in studies] == ["train", "val", "test"]
    assert studies[0].key == "pGRDNPAT000000000_aGRDNACC000000000_s1-2-826-0"
    assert (studies[0].patient, studies[0].modality) == ("GRDNPAT000000000", "DX")
    assert [image.view for image in studies[0].images] == ["PA", "LATERAL"]


@pytest.mark.parametrize(
    ("language", "findings"),
    [
        ("en", "Mild cardiomegaly in study 0. No pleural effusion."),
        ("es", "Cardiomegalia leve, señalada en el estudio 0. Sin derrame pleural."),
    ],
)
def test_padchest_gr(tmp_path, language, findings):
    studies = studies_of(PadChestGRReader(lookalikes.build_padchest_gr(tmp_path), language=language))
    assert (studies[0].report.findings, studies[0].language, studies[0].labels) == (findings, language, ("cardiomegaly",))
    assert [(study.patient, study.split) for study in studies] == [("840", "train"), ("841", "val"), ("842", "test")]
    assert not any("not_utf8_bytes" in study.meta for study in studies)


def test_nih_official_lists_and_patients(tmp_path):
    studies = studies_of(NIHChestXray14Reader(lookalikes.build_nih(tmp_path, 200), val_share=0.3))
    splits = {study.patient: set[str]() for study in studies}
    for study in studies:
        splits[study.patient].add(study.split)
    assert all(len(found) == 1 for found in splits.values()), "a patient is in two splits"
    assert {patient for patient, found in splits.items() if found == {"test"}} == {str(n) for n in range(2, 101, 5)}
    assert 10 < sum(found == {"val"} for found in splits.values()) < 40
    assert studies[0].labels == ("Cardiomegaly", "Effusion")
    assert studies[1].labels == ("No Finding",)


def test_nih_reports_are_written_from_labels_and_say_so(tmp_path):
    folder = lookalikes.build_nih(tmp_path, 6)
    written, empty = studies_of(NIHChestXray14Reader(folder)), studies_of(NIHChestXray14Reader(folder, reports="none"))
    judge = nih_judge()
    for study, without in zip(written, empty, strict=True):
        text = ReportText(findings=study.report.findings, impression=study.report.impression)
        assert judge.parse(text).well_formed
        assert judge.parse(text).findings == {label.lower() for label in study.labels if label != "No Finding"}
        assert study.meta["report"] == "written from labels"
        assert without.report == RawReport()
        assert "report" not in without.meta
    assert len({study.report.findings for study in written}) > 1
    with pytest.raises(ValueError, match="reports must be labels or none, got 'own'"):
        NIHChestXray14Reader(folder, reports="own")


def test_nih_label_that_nobody_knows(tmp_path):
    folder = lookalikes.build_nih(tmp_path, 4)
    table = folder / "Data_Entry_2017.csv"
    table.write_text(table.read_text().replace("Cardiomegaly", "Halo"))
    found = list(NIHChestXray14Reader(folder).studies())
    rejects = [one for one in found if isinstance(one, Reject)]
    assert rejects
    assert {(one.reason, one.detail) for one in rejects} == {("unknown_label", "a name of 4 characters")}


@pytest.mark.parametrize(("head", "line"), [(",", ""), ("", ","), ("", "")])
def test_nih_with_and_without_a_comma_at_the_end(tmp_path, head, line):
    """Copies of the table differ in the comma behind its last column, and in what they call the patient's sex."""
    folder = lookalikes.build_nih(tmp_path, 4)
    path = folder / "Data_Entry_2017.csv"
    first, *others = path.read_text().splitlines()
    first = first.rstrip(",").replace("Patient Gender", "Patient Sex") + head
    path.write_text("\n".join([first, *(other.rstrip(",") + line for other in others)]))
    studies = studies_of(NIHChestXray14Reader(folder))
    assert [(study.meta["sex"], study.meta["age"]) for study in studies] == [("M", "58")] * 4


def test_echo_paths_relative_to_the_json_then_to_a_folder(tmp_path, monkeypatch):
    source = lookalikes.build_echo(tmp_path / "set", 2)
    monkeypatch.chdir(tmp_path)
    first, second = studies_of(ECHOJSONReader(source))
    assert (first.key, first.split) == ("sample_0", "test")
    assert first.images[0].path == tmp_path / "set" / "img" / "0_0.png"
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "set" / "img").rename(tmp_path / "moved")
    elsewhere.mkdir()
    (tmp_path / "moved").rename(elsewhere / "img")
    moved = studies_of(ECHOJSONReader(source, images=elsewhere))
    assert moved[1].images[0].path == elsewhere / "img" / "1_0.png"
    assert moved[1].report == second.report


def test_table_of_images_and_of_json_lines(tmp_path):
    rows = [
        {"study": f"S{i // 2}", "file": f"{i}.png", "text": "FINDINGS: Clear.\nIMPRESSION: Normal.", "part": "dev"}
        for i in range(4)
    ]
    lookalikes.put(tmp_path / "all.jsonl", "\n".join(json.dumps(row) for row in rows))
    for i in range(4):
        lookalikes.put(tmp_path / f"{i}.png", lookalikes.PNG)
    columns = {"key": "study", "image": "file", "report": "text", "split": "part"}
    studies = studies_of(TableReader(tmp_path / "all.jsonl", columns=columns, rows="image"))
    assert [(study.key, len(study.images), study.split) for study in studies] == [("S0", 2, "val"), ("S1", 2, "val")]
    assert (studies[0].report.findings, studies[0].report.impression) == ("Clear.", "Normal.")


def test_real_mini(shared_data):
    folder = shared_data / "iu_xray_mini"
    reader = TableReader(folder / "manifest.jsonl", images=folder / "images", columns={"key": "study"}, rows="image")
    studies = studies_of(reader)
    assert (len(studies), sum(len(study.images) for study in studies)) == (5, 8)


def test_real_texts(shared_data):
    source = shared_data / "iu_xray_text" / "reports.jsonl"
    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    empty = [record["id"] for record in records if not record["findings"].strip() and not record["impression"].strip()]
    reader = TableReader(
        source,
        columns={"image": "", "indication": "indication", "comparison": "comparison", "labels": "mesh_major"},
    )
    items = list(reader.studies())
    assert len(items) == len(records)
    assert [item.key for item in items if isinstance(item, Reject)] == empty
    assert {item.reason for item in items if isinstance(item, Reject)} == {"no_report"}


def test_real_notes(shared_data):
    folder = shared_data / "covid_cxr_notes"
    columns = {"key": "image", "findings": "notes", "impression": "", "patient": "patient", "view": "view", "labels": "finding"}
    items = list(TableReader(folder / "manifest.jsonl", images=folder / "images", columns=columns).studies())
    assert len(items) == 347
    assert {item.reason for item in items if isinstance(item, Reject)} <= {"no_report", "duplicate_id"}
