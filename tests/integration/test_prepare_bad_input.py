"""Bad input through the whole command: each kind is named and counted and the run continues. Status and summary show it; no word of
a report appears in any output."""

from __future__ import annotations

import csv
import io
import json
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import lookalikes
import pytest
from commands import command
from PIL import Image

from echo_pl.data.readers.readers import READERS, reader_options
from echo_pl.data.store.corpus_index import CorpusIndex
from echo_pl.data.store.shard_reader import decode_study, read_samples
from echo_pl.data.store.study import Study

pytestmark = pytest.mark.slow

main = command("corpus", "prepare")

pydicom = pytest.importorskip("pydicom", reason="a DICOM file is made with pydicom: pip install 'echo-pl[dicom]'")
FINDINGS = "The heart is enlarged. The lungs are clear. There is no pleural effusion."
IMPRESSION = "Cardiomegaly."
SECRET = "Zebulon"
COLUMNS = ("id", "image", "findings", "impression", "language")
FEW = ("--vocab-size", "300", "--workers", "0", "--quiet")


def bomb() -> bytes:
    """A PNG of 30 000 x 30 000 pixels in a megabyte."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((30_000 // 8 + 1) * 30_000), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def dicom_without_pixels(path: Path) -> None:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.PatientName = SECRET
    data.save_as(path, enforce_file_format=True)


def write_images(folder: Path) -> None:
    """Two good images and one of each bad kind."""
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.effect_noise((32, 32), 50).save(folder / name)
    whole = (folder / "a.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "pickle.png").write_bytes(pickle.dumps({"findings": SECRET}))
    with tarfile.open(folder / "tar.png", "w") as archive:
        archive.addfile(tarfile.TarInfo("../../escaped"), io.BytesIO())
    (folder / "link.png").symlink_to("/etc/hostname")
    dicom_without_pixels(folder / "nothing.dcm")


ROWS = {
    # id: image, findings, what becomes of it
    "good": ("a.png", FINDINGS, ""),
    "html": ("a.png", f"<p>{FINDINGS}</p><script>var {SECRET};</script>", ""),
    "chinese": ("a.png", "心影增大。双肺清晰。未见胸腔积液。", ""),
    "truncated": ("truncated.png", FINDINGS, "reject images: truncated"),
    "zero": ("zero.png", FINDINGS, "reject images: empty_file"),
    "bomb": ("bomb.png", FINDINGS, "reject images: too_many_pixels"),
    "pickle": ("pickle.png", FINDINGS, "reject images: not_an_image"),
    "tar": ("tar.png", FINDINGS, "reject images: not_an_image"),
    "link": ("link.png", FINDINGS, "reject images: outside_folder"),
    "nothing": ("nothing.dcm", FINDINGS, "reject images: dicom_no_pixels"),
    "pipe": ("pipe:cat /etc/passwd", FINDINGS, "reject read: missing_image"),
    "climbing": ("../../../etc/passwd", FINDINGS, "reject read: outside_folder"),
    "absent": ("absent.png", FINDINGS, "reject read: missing_image"),
    "imageless": ("", FINDINGS, "reject read: no_image"),
    "two-one-cut": ("a.png|truncated.png", FINDINGS, "image images: truncated"),
    "two-one-absent": ("absent.png|b.png", FINDINGS, "image read: missing_image"),
    "two-none": ("zero.png|truncated.png", FINDINGS, "reject images: empty_file"),
    "french": (
        "a.png",
        f"Le coeur est normal. Les poumons sont clairs, sans signe de {SECRET}.",
        "review normalize: other_language",
    ),
    "greek": ("a.png", f"Η καρδιά είναι φυσιολογική, {SECRET}.", "review normalize: other_language"),
    "foreign": ("a.png", f"{SECRET} ok.", "reject read: other_language"),
    "empty": ("a.png", "", "reject read: no_report"),
    "control": ("a.png", f"The heart \x00 {SECRET}.", "reject read: undecodable_text"),
}
IMPRESSIONS = {"french": "Pas d'anomalie.", "greek": "Φυσιολογική.", "chinese": "心影增大。", "empty": ""}
STAY = ("good", "html", "chinese", "two-one-cut", "two-one-absent", "latin")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A table with rows of each kind, the last in another encoding, and one that is short of cells; an id that is there twice."""
    folder = tmp_path_factory.mktemp("source")
    write_images(folder / "images")
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for key, (image, findings, _) in ROWS.items():
        writer.writerow([key, image, findings, IMPRESSIONS.get(key, IMPRESSION), "fi" if key == "foreign" else "en"])
    writer.writerow(["good", "b.png", f"{SECRET}.", IMPRESSION, "en"])
    latin = f"latin,a.png,{FINDINGS} Caf\xe9-au-lait spots are noted.,{IMPRESSION},en\r\n".encode("latin-1")
    return lookalikes.put(folder / "reports.csv", text.getvalue().encode() + latin + f"short,{SECRET}\r\n".encode())


def command(source: Path, out: Path) -> list[str]:
    options = [f"images={source.parent / 'images'}", "columns.language=language"]
    return ["--reader", "table", "--source", str(source), "--out", str(out), *FEW] + [
        part for option in options for part in ("--reader-option", option)
    ]


def studies_of(folder: Path) -> dict[str, Study]:
    index = CorpusIndex.load(folder)
    shards = [shard for split in index.splits.values() for shard in split]
    found = [decode_study(raw) for shard in shards for _, raw in read_samples(folder, shard, range(shard.samples))]
    return {study.key: study for study in found}


def test_each_kind_is_named_and_counted_and_the_rest_is_made(source, tmp_path, capsys, caplog, recwarn):
    out = tmp_path / "out"
    assert main(command(source, out)) == 3
    studies = studies_of(out)
    assert sorted(studies) == sorted(STAY)
    assert {key: len(study.images) for key, study in studies.items() if key.startswith("two")} == {
        "two-one-cut": 1,
        "two-one-absent": 1,
    }
    assert studies["latin"].meta["not_utf8_bytes"] == "1"
    assert "Café-au-lait" in studies["latin"].normalized.findings
    assert not any(mark in studies["html"].normalized.findings for mark in ("<", ">", SECRET))
    assert studies["chinese"].meta["language"] == "zh"

    reported = [json.loads(line) for line in (out / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    named = sorted((one["key"], f"{one['kind']} {one['step']}: {one['reason']}") for one in reported)
    others = [("good", "reject read: duplicate_id"), ("reports.csv", "reject read: damaged_row")]
    assert named == sorted([(key, what) for key, (_, _, what) in ROWS.items() if what] + others)

    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    counted = {f"{kind} {reason}": n for kind, reasons in card["left_out"].items() for reason, n in reasons.items()}
    assert sum(counted.values()) == len(named)
    assert all(n == sum(what == reason for _, what in named) for reason, n in counted.items())
    assert card["dropped_from_reports"]["html"] > 0

    printed = capsys.readouterr()
    assert "  rejected: 17, see rejects.jsonl (" in printed.out
    assert "  images lost of studies that stay: 2, see rejects.jsonl (" in printed.out
    assert "  to review: 2, see review.jsonl (normalize: other_language 2)" in printed.out
    heard = printed.out + printed.err + caplog.text + "".join(str(one.message) for one in recwarn)
    public = heard + "".join((out / name).read_text(encoding="utf-8") for name in ("README.md", "card.json", "rejects.jsonl"))
    assert not any(word in public for word in (SECRET, "enlarged", "pleural", "poumons", "passwd", "心影"))
    assert {path.name: path.stat().st_mode & 0o077 for path in out.glob("re*.jsonl")} == {"rejects.jsonl": 0, "review.jsonl": 0}
    assert not (source.parent / "escaped").exists()


def test_reports_of_mimic_in_a_folder_of_their_own(tmp_path):
    source = lookalikes.build_mimic(tmp_path / "jpg", 6)
    for report in sorted((source / "files").rglob("*.txt")):
        lookalikes.put(tmp_path / "txt" / report.relative_to(source), report.read_bytes())
        report.unlink()
    options = ["--reader", "mimic_cxr", "--source", str(source), "--reader-option", f"reports={tmp_path / 'txt'}"]
    assert main([*options, "--out", str(tmp_path / "out"), *FEW]) == 0
    assert len(studies_of(tmp_path / "out")) == 6


def test_nothing_left_says_why(tmp_path, capsys):
    reports, _ = lookalikes.build_openi(tmp_path / "iu", 3)
    assert main(["--reader", "iu_openi", "--source", str(reports), "--out", str(tmp_path / "out"), *FEW]) == 2
    assert "not one study is left to write (read: no_image 3" in capsys.readouterr().err


def test_help_and_documentation_name_every_reader_with_its_options(capsys):
    assert main(["--help"]) == 0
    reported = " ".join(capsys.readouterr().out.split())
    documented = (Path(__file__).parents[2] / "docs" / "reference" / "readers.md").read_text(encoding="utf-8")
    for name in READERS:
        assert f" {name}: " in reported
        assert f"| `{name}` |" in documented
        assert ", ".join(reader_options(name)) in reported
    for name in ("reports", "images", "files", "columns"):
        assert f"`{name}=" in documented or f"`{name}.*=`" in documented


def test_columns_that_are_missing_end_the_run_with_their_names(source, tmp_path, capsys):
    assert main([*command(source, tmp_path / "out"), "--reader-option", "columns.findings=report_text"]) == 2
    printed = capsys.readouterr()
    assert "lacks the columns ['report_text']; it has ['id', 'image', 'findings', 'impression', 'language']" in printed.err
    assert not (tmp_path / "out" / "index.json").exists()


def test_a_hostile_archive_as_a_source(tmp_path, capsys):
    images = lookalikes.build_openi(tmp_path / "whole", 3)[1]
    path = tmp_path / "reports.tgz"
    report = {i: lookalikes.openi_xml(i).encode() for i in range(1, 4)}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"../../1.xml": report[1], "/etc/2.xml": report[2], "pipe:id.xml": report[3]}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo("x.pkl")
        member.size = len(pickle.dumps(0))
        archive.addfile(member, io.BytesIO(pickle.dumps(0)))
        for kind, name in (
            (tarfile.SYMTYPE, "l.xml"),
            (tarfile.LNKTYPE, "h.xml"),
            (tarfile.FIFOTYPE, "f.xml"),
            (tarfile.CHRTYPE, "c.xml"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    out = tmp_path / "out"
    options = ["--reader", "iu_openi", "--source", str(path), "--reader-option", f"images={images}", "--out", str(out), *FEW]
    assert main(options) == 3
    assert sorted(studies_of(out)) == ["CXR1", "CXR2", "CXR3"]
    assert "rejected: 5, see rejects.jsonl (read: unexpected_file 5)" in capsys.readouterr().out
    assert sorted(found.name for found in tmp_path.iterdir()) == ["out", "reports.tgz", "whole"]
