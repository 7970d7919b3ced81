"""An error in one study costs that study and is named; an error in a dataset reports its kind and place."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path

import lookalikes
import pytest

from echo_pl.data.readers.chexpert_plus import CheXpertPlusReader
from echo_pl.data.readers.echo_json import ECHOJSONReader
from echo_pl.data.readers.iu_xray import KaggleIUReader, OpenIReader, R2GenReader
from echo_pl.data.readers.mimic_cxr import MIMICCXRReader
from echo_pl.data.readers.nih_chestxray14 import NIHChestXray14Reader
from echo_pl.data.readers.padchest_gr import PadChestGRReader
from echo_pl.data.readers.reader import CorpusReader, Reject, SourceStudy
from echo_pl.data.readers.rexgradient import ReXGradientReader
from echo_pl.data.readers.table_corpus import Columns, TableReader


def sort_out(reader: CorpusReader) -> tuple[list[SourceStudy], list[tuple[str, str]]]:
    """Studies, and key and reason of the rejects."""
    items = list(reader.studies())
    studies = [item for item in items if isinstance(item, SourceStudy)]
    assert not any(word in item.detail.lower() for item in items if isinstance(item, Reject) for word in ("heart", "acute"))
    return studies, [(item.key, item.reason) for item in items if isinstance(item, Reject)]


def edit(path: Path, old: str, new: str) -> None:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    changed = content.replace(old.encode(), new.encode(), 1)
    assert changed != content
    path.write_bytes(gzip.compress(changed) if path.suffix == ".gz" else changed)


def table(folder: Path, content: bytes | str, **columns: str) -> TableReader:
    return TableReader(lookalikes.put(folder / "t.csv", content), columns=Columns(**{"image": "", **columns}))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<eCitation><uId id='CXR2'/></eCitation>", "damaged_xml"),
        ('<eCitation><uId id="CXR2"/></eCitation>', "no_image"),
        ('<eCitation><uId id="CXR2"/>', "damaged_xml"),
        ("", "damaged_xml"),
        (lookalikes.openi_xml(2, findings="", impression=" "), "no_report"),
        (lookalikes.openi_xml(2, images=[]), "no_image"),
        (lookalikes.openi_xml(2, images=["CXR2_absent"]), "missing_image"),
        (lookalikes.openi_xml(2, images=["../../secret"]), "outside_folder"),
        (lookalikes.openi_xml(2, images=["/etc/passwd"]), "outside_folder"),
        (lookalikes.openi_xml(1), "duplicate_id"),
        (lookalikes.openi_xml(2, findings="\x01"), "undecodable_text"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]>' + lookalikes.openi_xml(2).partition("?>")[2], "forbidden_xml"),
        (lookalikes.openi_xml(2, findings="x" * (1 << 20)), "too_large"),
    ],
)
def test_openi(tmp_path, text, reason):
    reports, images = lookalikes.build_openi(tmp_path, 3)
    lookalikes.put(reports / "2.xml", text)
    studies, rejects = sort_out(OpenIReader(reports, images=images))
    assert [study.key for study in studies] == ["CXR1", "CXR3"]
    assert [reason for _, reason in rejects] == [reason]


@pytest.mark.parametrize("name", ["iu_openi", "iu_r2gen", "iu_kaggle", "mimic_cxr", "chexpert_plus", "rexgradient", "echo_json"])
def test_an_image_that_is_not_there_costs_its_study_nothing_else(name, tmp_path):
    built = lookalikes.BUILDERS[name](tmp_path, 3)

    def read() -> tuple[list[SourceStudy], list[tuple[str, str]]]:
        return sort_out(lookalikes.open_reader(name, tmp_path, built))

    (first, *others), _ = read()
    gone, stays = first.images
    gone.path.unlink()
    (left, *same), rejects = read()
    assert (left.images, left.report, same, rejects) == ((stays,), first.report, others, [])
    (lost,) = left.lost
    assert (Path(lost.detail).stem, lost.reason) == (gone.path.stem, "missing_image")
    stays.path.unlink()
    assert read() == (others, [(first.key, "missing_image")])


def test_hostile_archive(tmp_path):
    good = lookalikes.openi_xml(1).encode()
    path = lookalikes.build_openi_archive(
        tmp_path / "a.tgz",
        {"../../1.xml": good, "ecgen-radiology/x.pkl": b"cos\nsystem\n", "pipe:id.xml": lookalikes.openi_xml(2).encode()},
    )
    with tarfile.open(path) as archive:
        names = archive.getnames()
    with tarfile.open(tmp_path / "b.tgz", "w:gz") as archive:
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "/etc/passwd"), (tarfile.FIFOTYPE, "")):
            member = tarfile.TarInfo(f"{len(archive.getnames())}.xml")
            member.type, member.linkname = kind, target
            archive.addfile(member)
    assert "../../1.xml" in names
    studies, rejects = sort_out(OpenIReader(path))
    assert [study.key for study in studies] == ["CXR1", "CXR2"]
    assert rejects == [("x.pkl", "unexpected_file")]
    assert sort_out(OpenIReader(tmp_path / "b.tgz"))[1] == [(f"{i}.xml", "unexpected_file") for i in range(3)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tgz", "b.tgz"], "something was unpacked"


def test_archive_cut_off_or_none(tmp_path):
    members = {f"{i}.xml": lookalikes.openi_xml(i, findings="word " * 5000 + "{i}").encode() for i in range(40)}
    path = lookalikes.build_openi_archive(tmp_path / "a.tgz", members)
    path.write_bytes(path.read_bytes()[:-200])
    studies, rejects = sort_out(OpenIReader(path))
    assert studies
    assert rejects == [("a.tgz", "damaged_file")]
    lookalikes.put(path, "not a tar")
    with pytest.raises(ValueError, match=r"a\.tgz is no tar archive"):
        list(OpenIReader(path).studies())


def test_mixed_encodings_are_read_and_counted(tmp_path):
    rows = b"id,findings,impression\na,caf\xe9,x\nb,caf\xc3\xa9,x\nc,\x93quoted\x94 caf\xc3\xa9,x\nd,\x81,x\n"
    studies, rejects = sort_out(table(tmp_path, rows))
    assert not rejects
    assert [study.report.findings for study in studies] == ["café", "café", "“quoted” café", "\x81"]
    assert [study.meta.get("not_utf8_bytes") for study in studies] == ["1", None, "2", "1"]


def test_latin1_in_xml_and_in_mimic(tmp_path):
    reports, _ = lookalikes.build_openi(tmp_path / "iu", 1)
    path = reports / "1.xml"
    path.write_bytes(path.read_bytes().replace(b"lungs", b"l\xfcngs"))
    (study,), _ = sort_out(OpenIReader(reports))
    assert "lüngs" in study.report.findings
    assert study.meta["not_utf8_bytes"] == "1"
    folder = lookalikes.build_mimic(tmp_path / "mimic", 2)
    first, second = sorted(folder.rglob("*.txt"))
    first.write_bytes(first.read_bytes().replace(b"lungs", b"l\xfcngs"))
    second.write_bytes(second.read_text().encode("utf-16"))
    studies, rejects = sort_out(MIMICCXRReader(folder))
    assert not rejects
    assert "lüngs" in studies[0].report.findings
    assert studies[1].report.findings == "The heart is not enlarged. Both lungs are clear; study 1."
    second.write_bytes(second.read_text(encoding="utf-16").encode("utf-16-le"))  # without its mark: NULs
    assert sort_out(MIMICCXRReader(folder))[1] == [("50000001", "undecodable_text")]


def test_mimic(tmp_path):
    folder = lookalikes.build_mimic(tmp_path, 8)
    texts = sorted(folder.rglob("*.txt"))
    texts[0].unlink()
    texts[1].write_text("FINAL REPORT\n IMPRESSION:\n\n")
    sorted(folder.rglob("*.jpg"))[4].unlink()
    edit(folder / "mimic-cxr-2.0.0-split.csv.gz", "50000003,10000001,test", "50000003,10000001,dev")
    edit(folder / "mimic-cxr-2.0.0-split.csv.gz", "50000003,10000001,test", "50000003,10000001,dev")
    metadata = folder / "mimic-cxr-2.0.0-metadata.csv.gz"
    edit(metadata, "00000004-0lateral", "00000004-000000pa")
    edit(metadata, "10000002,50000005", ",50000005")
    edit(metadata, "10000003,50000006", "10000003,")
    studies, rejects = sort_out(MIMICCXRReader(folder))
    assert sorted(rejects) == [
        ("50000000", "no_report"),
        ("50000001", "no_report"),
        ("50000003", "missing_value"),
        ("50000004", "duplicate_id"),
        ("50000005", "missing_value"),
        ("line 14", "missing_value"),
    ]
    assert [(study.key, len(study.images)) for study in studies] == [
        ("50000002", 1),
        ("50000004", 1),
        ("50000006", 1),
        ("50000007", 2),
    ]
    assert studies[0].lost[0].reason == "missing_image"


def test_damage_in_a_table_that_is_read_before_another_is_reported(tmp_path):
    mimic = lookalikes.build_mimic(tmp_path / "mimic", 2)
    edit(mimic / "mimic-cxr-2.0.0-chexpert.csv.gz", "10000000,50000001,", "10000000,50000001,,,,,1.0")
    padchest = lookalikes.build_padchest_gr(tmp_path / "padchest", 3)
    with (padchest / "master_table.csv").open("a") as file:
        file.write("too,few\n")
    for reader, table in (
        (MIMICCXRReader(mimic), "mimic-cxr-2.0.0-chexpert.csv.gz"),
        (PadChestGRReader(padchest), "master_table.csv"),
    ):
        studies, rejects = sort_out(reader)
        assert rejects == [(table, "damaged_row")]
        assert sum(1 for _ in reader.studies(skip=len(studies))) == 1


def test_chexpert_plus(tmp_path):
    folder = lookalikes.build_chexpert_plus(tmp_path, 5)
    path = folder / "df_chexpert_plus_240401.csv"
    (folder / "PNG/train/patient00000/study1/view2_lateral.png").unlink()
    edit(path, "train/patient00000/study2/view1_frontal.jpg", "view1_frontal.jpg")
    edit(path, ",Female,,,,,,,train", ",Female,,,,,,,elsewhere")
    with path.open("a") as file:
        file.write("too,few,cells\n")
    studies, rejects = sort_out(CheXpertPlusReader(folder))
    assert len(studies) == 4
    assert sorted(rejects) == [(path.name, "damaged_row"), ("line 4", "missing_value"), ("patient00000-study1", "missing_value")]
    with pytest.raises(ValueError, match="files must be one of"):
        CheXpertPlusReader(folder, files="jpeg")  # type: ignore[arg-type]


def test_kaggle(tmp_path):
    folder = lookalikes.build_kaggle(tmp_path, 4)
    edit(folder / "indiana_reports.csv", "\n2,", "\n1,")
    edit(folder / "indiana_reports.csv", "\n3,", "\n,")
    edit(folder / "indiana_projections.csv", "4_IM-0001-1001.dcm.png", "")
    studies, rejects = sort_out(KaggleIUReader(folder))
    assert [(study.key, [one.reason for one in study.lost]) for study in studies] == [("CXR1", []), ("CXR4", ["missing_value"])]
    assert rejects == [
        ("CXR1", "duplicate_id"),
        ("entry 2", "missing_value"),
        ("CXR2", "no_report"),
        ("CXR3", "no_report"),
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ImagePath": []}, "no_image"),
        ({"ImagePath": ["../../../etc/passwd"]}, "outside_folder"),
        ({"ImagePath": ["../deid_png/absent.png"]}, "missing_image"),
        ({"ImagePath": {"a": 1}}, "wrong_type"),
        ({"PatientID": None}, "missing_value"),
        ({"Findings": "nan", "Impression": None}, "no_report"),
        ({"Findings": ["a"]}, "wrong_type"),
        ({"Findings": "\ud800"}, "undecodable_text"),
        ({"Findings": "a\0b"}, "undecodable_text"),
    ],
)
def test_rexgradient(tmp_path, change, reason):
    folder = lookalikes.build_rexgradient(tmp_path, 3)
    path = folder / "metadata" / "valid_metadata_view_position.json"
    ((key, record),) = json.loads(path.read_text()).items()
    path.write_text(json.dumps({key: record | change}))
    studies, rejects = sort_out(ReXGradientReader(folder))
    assert len(studies) == 2
    assert [one for _, one in rejects] == [reason]


def test_damaged_json_ends_its_file_and_not_the_run(tmp_path):
    folder = lookalikes.build_rexgradient(tmp_path, 6)
    path = folder / "metadata" / "train_metadata_view_position.json"
    path.write_text(path.read_text()[:-40])
    studies, rejects = sort_out(ReXGradientReader(folder))
    assert [study.split for study in studies] == ["train", "val", "val", "test", "test"]
    assert rejects == [(path.name, "damaged_file")]


def test_a_name_that_stands_twice_in_an_object(tmp_path):
    folder = lookalikes.build_rexgradient(tmp_path, 1)
    path = folder / "metadata" / "train_metadata_view_position.json"
    content = path.read_text().strip()
    path.write_text(content[:-1] + "," + content[1:])
    studies, rejects = sort_out(ReXGradientReader(folder))
    assert (len(studies), [reason for _, reason in rejects]) == (1, ["duplicate_id"])


def test_padchest_gr(tmp_path):
    folder = lookalikes.build_padchest_gr(tmp_path, 4)
    path = folder / "grounded_reports_20240819.json"
    records = json.loads(path.read_text())
    del records[0]["findings"]
    records[1]["StudyID"] = "unknown"
    records[2]["ImageID"] = ""
    path.write_text(json.dumps([*records, "x", {}]))
    studies, rejects = sort_out(PadChestGRReader(folder))
    assert len(studies) == 1
    assert rejects == [
        ("20536686640130", "missing_value"),
        ("unknown", "missing_value"),
        ("20536686640132", "missing_value"),
        ("entry 4", "damaged_row"),
        ("entry 5", "missing_value"),
    ]


def test_echo(tmp_path):
    path = lookalikes.build_echo(tmp_path / "set", 4)
    records = json.loads(path.read_text())
    records[0]["images"] = [str(lookalikes.put(tmp_path / "other.png", lookalikes.PNG))]
    records[1].pop("ground_truth")
    records[2]["images"] = [str(tmp_path / "set" / "img" / "2_0.png")]
    path.write_text(json.dumps(records))
    studies, rejects = sort_out(ECHOJSONReader(path))
    assert [study.key for study in studies] == ["sample_2", "sample_3"]
    assert rejects == [("sample_0", "outside_folder"), ("sample_1", "no_report")]


def test_nih(tmp_path):
    folder = lookalikes.build_nih(tmp_path, 6)
    edit(folder / "train_val_list.txt", "00000001_000.png", "")
    edit(folder / "Data_Entry_2017.csv", "00000001_001.png", "00000009_009.png")
    edit(folder / "Data_Entry_2017.csv", "00000002_000.png,Cardiomegaly|Effusion", "00000002_000.png,")
    studies, rejects = sort_out(NIHChestXray14Reader(folder))
    assert len(studies) == 3
    assert rejects == [("00000001_000", "missing_value"), ("00000009_009", "missing_value"), ("00000002_000", "missing_value")]


def test_table(tmp_path):
    rows = 'id,findings,impression\na,x,\na,y,\n,z,\nb,nan,\nc,x\n"d/1",x,\nd-1,x,\n\ne,"over\ntwo lines",\n'
    studies, rejects = sort_out(table(tmp_path, rows))
    assert [(study.key, study.report.findings) for study in studies] == [("a", "x"), ("d-1", "x"), ("e", "over two lines")]
    assert rejects == [
        ("a", "duplicate_id"),
        ("entry 2", "missing_value"),
        ("b", "no_report"),
        ("t.csv", "damaged_row"),
        ("d-1", "duplicate_id"),
    ]


def test_a_quote_that_is_never_closed(tmp_path):
    lines = [f"r{i},{'word ' * 20},x\n" for i in range(3000)]
    lines[5] = lines[5].replace(",word", ',"word', 1)
    studies, rejects = sort_out(table(tmp_path, "id,findings,impression\n" + "".join(lines)))
    assert [reason for _, reason in rejects] == ["damaged_row"]
    assert {"r0", "r4", "r2999"} <= {study.key for study in studies}


def test_json_lines(tmp_path):
    lines = ['{"id": "a", "findings": "x", "impression": ""}', "{", "[1]", '{"id": "b", "findings": 3}', '{"findings": "x"}']
    path = lookalikes.put(tmp_path / "t.jsonl", "\n".join(lines))
    studies, rejects = sort_out(TableReader(path, columns={"image": ""}))
    assert [study.key for study in studies] == ["a", "b"]
    assert rejects == [("t.jsonl", "damaged_row"), ("t.jsonl", "damaged_row"), ("entry 4", "missing_value")]


@pytest.mark.parametrize(
    ("name", "file", "column"),
    [
        ("mimic", "mimic-cxr-2.0.0-metadata.csv.gz", "ViewPosition"),
        ("mimic", "mimic-cxr-2.0.0-split.csv.gz", "split"),
        ("chexpert_plus", "df_chexpert_plus_240401.csv", "section_findings"),
        ("kaggle", "indiana_reports.csv", "impression"),
        ("kaggle", "indiana_projections.csv", "projection"),
        ("padchest_gr", "master_table.csv", "PatientID"),
        ("nih", "Data_Entry_2017.csv", "Patient ID"),
    ],
)
def test_missing_columns_are_named_with_those_found(tmp_path, name, file, column):
    build, reader = {
        "mimic": (lookalikes.build_mimic, MIMICCXRReader),
        "chexpert_plus": (lookalikes.build_chexpert_plus, CheXpertPlusReader),
        "kaggle": (lookalikes.build_kaggle, KaggleIUReader),
        "padchest_gr": (lookalikes.build_padchest_gr, PadChestGRReader),
        "nih": (lookalikes.build_nih, NIHChestXray14Reader),
    }[name]
    folder = build(tmp_path)
    edit(folder / file, column, "Renamed")
    with pytest.raises(ValueError, match=rf"{file} lacks the columns \['{column}'\]; it has .*'Renamed'"):
        list(reader(folder).studies())


def test_another_dataset(tmp_path):
    lookalikes.build_r2gen(tmp_path, 1)
    lookalikes.put(tmp_path / "annotation.json", '{"images": []}')
    with pytest.raises(ValueError, match=r"lacks the lists \['train', 'val', 'test'\]; it has \['images'\]"):
        list(R2GenReader(tmp_path).studies())
    lookalikes.put(tmp_path / "annotation.json", "12")
    with pytest.raises(ValueError, match="neither a JSON list nor a JSON object"):
        list(R2GenReader(tmp_path).studies())


def test_gzip_cut_off(tmp_path):
    folder = lookalikes.build_mimic(tmp_path, 200)
    path = folder / "mimic-cxr-2.0.0-metadata.csv.gz"
    path.write_bytes(path.read_bytes()[:-300])
    studies, rejects = sort_out(MIMICCXRReader(folder))
    assert studies
    assert (path.name, "damaged_file") in rejects


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": "file"}, "rows must be"),
        ({"separator": ""}, "separator must not be empty"),
        ({"columns": {"key": ""}}, "columns.key must be named"),
        ({"columns": {"finding": "x"}}, r"columns names \['finding'\], known are \['key', "),
        ({"columns": {"findings": "", "impression": ""}}, "columns must name"),
    ],
)
def test_options_of_a_table(tmp_path, options, message):
    path = lookalikes.put(tmp_path / "t.csv", "id\n")
    with pytest.raises(ValueError, match=message):
        TableReader(path, **options)


def test_a_report_in_another_field_is_not_shown(tmp_path):
    """Columns mistaken for one another must not put a report into a rejects file or a message."""
    rows = f"id,findings,impression\nThe heart is large,{'The heart is large. ' * 20},train\n"
    path = lookalikes.put(tmp_path / "t.csv", rows)
    for columns in ({"image": "findings"}, {"image": "", "split": "findings"}, {"image": "", "key": "findings"}):
        (reject,) = TableReader(path, columns=columns).studies()
        assert isinstance(reject, Reject)
        assert "large." not in f"{reject.detail}"
        assert "The-heart-is-large-The" not in reject.key
    lookalikes.put(path, rows.partition("\n")[2])
    with pytest.raises(ValueError, match="lacks the columns") as caught:
        list(TableReader(path).studies())
    assert "large. The" not in str(caught.value)


def test_a_folder_that_is_where_one_stands(tmp_path, monkeypatch):
    lookalikes.build_table(tmp_path, 1)
    monkeypatch.chdir(tmp_path / "img")
    (study,), rejects = sort_out(TableReader("../reports.csv", images="."))
    assert not rejects
    monkeypatch.chdir("/")
    assert all(image.path.is_file() and image.root == tmp_path / "img" for image in study.images)
