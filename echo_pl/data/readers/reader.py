"""Studies as datasets store them, and the code that all readers share.

A reader lists its entries cheaply, and :func:`read_studies` makes a study of each. An error in one entry becomes a
:class:`Reject`, so that it never ends a run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from echo_pl.data.readers.text_files import UndecodableTextError, mend
from echo_pl.reports.report import RawReport

T = TypeVar("T")
NOT_UTF8: Final = "not_utf8_bytes"
"""Key of a study's ``meta``: number of bytes that are not UTF-8 and were read as Windows-1252."""
MAX_KEY: Final = 200
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")
# With columns mixed up, a file name may be a report, which must not be logged.
_FILE_NAME: Final = re.compile(r"[\w./ +-]{1,512}\.(?:png|jpe?g|dcm|dicom)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One image of a study, not opened yet."""

    path: Path
    view: str = ""
    """PA, AP, LATERAL ...; empty if unknown."""
    root: Path | None = None
    """Folder that must contain the file when links are followed; None: no limit."""


@dataclass(frozen=True, kw_only=True)
class LostImage:
    """Unusable image of a study that keeps its other images."""

    reason: str
    """As in :class:`Reject`."""
    detail: str
    """Its name, if it looks like a file name."""


@dataclass(frozen=True, kw_only=True)
class SourceStudy:
    """One study as its dataset stores it."""

    key: str
    """Unique in its dataset; only letters, digits, ``-`` and ``_``."""
    patient: str
    """Unit of the splits; the study's key in datasets without patients."""
    images: tuple[SourceImage, ...]
    """Images that exist."""
    report: RawReport
    split: str | None = None
    """Official split, if any: ``train``, ``val`` or ``test``."""
    modality: str = ""
    """DX, CR ... in the dataset's words; empty if unknown."""
    language: str = "en"
    labels: tuple[str, ...] = ()
    """Finding labels of the dataset."""
    meta: Mapping[str, str] = field(default_factory=dict)
    lost: tuple[LostImage, ...] = ()
    """Further images that the dataset names and that do not exist."""


@dataclass(frozen=True, kw_only=True)
class Reject:
    """Omitted item of a dataset, with the reason. Contains no words of a report."""

    key: str
    """Key of the study, or the file's name if there is no study."""
    reason: str
    """Short name that is counted: ``missing_image``, ``duplicate_id``, ``no_report`` ..."""
    detail: str = ""


class CorpusReader(Protocol):
    """A dataset on disk. Reading it twice gives the same studies in the same order.

    Constructors raise FileNotFoundError if files or folders are missing, and ValueError if an option is out of range.
    """

    name: str
    licence: str
    """Short form for the dataset card."""
    citation: str

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield studies one by one without opening images; an unreadable one is a :class:`Reject`.

        Args:
            skip: Number of items to omit at the start, rejects included. Their images and reports are not read.

        Raises:
            FileNotFoundError: If files of the dataset are missing.
            ValueError: If columns are missing, or it is another dataset; the message names them.
        """
        ...


class NamedImage(NamedTuple):
    """One image of a study as its dataset names it."""

    file: str
    view: str = ""


class RejectedError(ValueError):
    """One entry cannot become a study.

    Args:
        reason: As in :class:`Reject`.
        detail: As in :class:`Reject`; no words of a report.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class SourceEntry(Generic[T]):
    """Unread study."""

    name: str
    """Its id in the dataset."""
    content: T


def read_studies(
    entries: Iterable[SourceEntry[T] | Reject],
    make: Callable[[str, T], SourceStudy],
    *,
    skip: int = 0,
    text_needed: bool = True,
) -> Iterator[SourceStudy | Reject]:
    """Make a study or a reject of every entry.

    Args:
        entries: In the dataset's order.
        make: Function of key and content; raises :class:`RejectedError`.
        skip: Number of entries to omit. Their names still count for duplicates.
        text_needed: Reject studies without findings and impression.

    Raises:
        ValueError: If skip is negative.
    """
    if skip < 0:
        raise ValueError(f"skip must not be negative, got {skip}")
    seen: set[str] = set()
    for place, entry in enumerate(entries):
        if isinstance(entry, Reject):
            if place >= skip:
                yield entry
            continue
        key = safe_key(entry.name)
        is_duplicate = key in seen
        seen.add(key)
        if place < skip:
            continue
        try:
            if not key:
                raise RejectedError("missing_value", "it has no id")
            if len(key) > MAX_KEY:
                raise RejectedError("bad_id", f"its id has {len(key)} characters")
            if is_duplicate:
                raise RejectedError("duplicate_id")
            yield _mended(make(key, entry.content), text_needed)
        except RejectedError as error:
            yield Reject(key=key if 0 < len(key) <= MAX_KEY else f"entry {place}", reason=error.reason, detail=error.detail)


def safe_key(name: str) -> str:
    """Replace everything but letters, digits, ``-`` and ``_`` by ``-``.

    >>> safe_key("patient1/study2"), safe_key("1.2.840")
    ('patient1-study2', '1-2-840')
    """
    return _UNSAFE.sub("-", name).strip("-")


def find_image(root: Path, image: NamedImage) -> SourceImage:
    """Find an image in a folder, which its name must not leave.

    Raises:
        RejectedError: If it has no name, does not exist, or is outside the folder.
    """
    name = image.file
    if not name.strip():
        raise RejectedError("missing_value", "an image has no file name")
    if "\0" in name:
        raise RejectedError("outside_folder", "a file name holds NUL")
    top = os.path.abspath(root)
    path = os.path.abspath(os.path.join(top, name))
    if not path.startswith(os.path.join(top, "")):
        raise RejectedError("outside_folder", loggable_name(name))
    if not os.path.isfile(path):
        raise RejectedError("missing_image", loggable_name(name))
    return SourceImage(path=Path(path), view=image.view, root=Path(top))


def find_images(images: Iterable[NamedImage], *folders: Path) -> tuple[tuple[SourceImage, ...], tuple[LostImage, ...]]:
    """Find the images of a study, each in the first folder that has it; return those that exist and those that are lost.

    Raises:
        RejectedError: If none exists, with the reason of the first one, or ``no_image``.
    """
    found: list[SourceImage] = []
    lost: list[LostImage] = []
    first: RejectedError | None = None
    for one in images:
        try:
            found.append(_find_first(folders, one))
        except RejectedError as error:
            first = first or error
            lost.append(LostImage(reason=error.reason, detail=error.detail))
    if not found:
        raise first or RejectedError("no_image")
    return tuple(found), tuple(lost)


def _find_first(folders: Sequence[Path], image: NamedImage) -> SourceImage:
    for folder in folders[:-1]:
        try:
            return find_image(folder, image)
        except RejectedError:
            continue
    return find_image(folders[-1], image)


def loggable_name(name: str) -> str:
    """Return a name that looks like a file name, otherwise its length: it may be a report.

    >>> loggable_name("a/b.png"), loggable_name("The heart is large.")
    ('a/b.png', 'a name of 19 characters')
    """
    return name if _FILE_NAME.fullmatch(name) else f"a name of {len(name)} characters"


def non_empty(**values: str) -> dict[str, str]:
    """Return the values that are not empty, for a study's ``meta``."""
    return {name: value for name, value in values.items() if value}


def require(values: Mapping[str, str]) -> None:
    """Raise RejectedError, with the names, if values are empty."""
    if missing := [name for name, value in values.items() if not value]:
        raise RejectedError("missing_value", ", ".join(missing))


def official_split(name: str, splits: Mapping[str, str], column: str = "split") -> str:
    """Return the split that a dataset's name means, or raise RejectedError."""
    if name not in splits:
        raise RejectedError("missing_value", f"{column} is none of {list(splits)}")
    return splits[name]


def text_report(**sections: str) -> RawReport:
    """Return a report of sections with single spaces as their only white space."""
    return RawReport(**{name: " ".join(text.split()) for name, text in sections.items()})


def _mended(study: SourceStudy, text_needed: bool) -> SourceStudy:
    """Mend the text of a study, and check that it has some."""
    counts: list[int] = []

    def clean(text: str) -> str:
        mended, count = mend(text)
        counts.append(count)
        return mended

    try:
        report = RawReport(**{name: clean(text) for name, text in vars(study.report).items()})
        images = tuple(replace(image, view=clean(image.view)) for image in study.images)
        labels = tuple(clean(label) for label in study.labels)
        meta = {name: clean(value) for name, value in study.meta.items()}
        patient, modality, language = clean(study.patient), clean(study.modality), clean(study.language)
    except UndecodableTextError as error:
        raise RejectedError("undecodable_text", str(error)) from None
    if text_needed and not (report.findings.strip() or report.impression.strip()):
        raise RejectedError("no_report")
    if count := sum(counts):
        meta[NOT_UTF8] = str(count)
    return replace(
        study, patient=patient, images=images, report=report, modality=modality, language=language, labels=labels, meta=meta
    )
