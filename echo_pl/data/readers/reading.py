"""What all readers share: from a dataset's entries to studies and rejects, in order, each key once, from any place on.

A reader lists its entries cheaply and makes a study of one where it is asked for. Everything that is wrong with one entry ends
here, as a :class:`Reject`. Knows no dataset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

from echo_pl.data.readers.reader import LostImage, Reject, SourceImage, SourceStudy
from echo_pl.data.readers.text_files import UndecodableTextError, mend
from echo_pl.reports.report import RawReport

T = TypeVar("T")
NOT_UTF8: Final = "not_utf8_bytes"
"""In a study's ``meta``: how many bytes of its text were no UTF-8 and were read as Windows-1252."""
MAX_KEY: Final = 200
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")
# Where a column is mistaken for another, a file's name is a report.
_TELLABLE: Final = re.compile(r"[\w./ +-]{1,512}\.(?:png|jpe?g|dcm|dicom)", re.IGNORECASE)


class View(NamedTuple):
    """One image of a study, as a dataset names it."""

    file: str
    view: str = ""


class RejectedError(ValueError):
    """One entry cannot be a study.

    Args:
        reason: as in :class:`Reject`.
        detail: as in :class:`Reject`; none of a report's words.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Entry(Generic[T]):
    """One study to be, unread."""

    name: str
    """What the dataset calls it."""
    content: T


def read_studies(
    entries: Iterable[Entry[T] | Reject],
    make: Callable[[str, T], SourceStudy],
    *,
    skip: int = 0,
    text_needed: bool = True,
) -> Iterator[SourceStudy | Reject]:
    """Make a study or a reject of every entry.

    Args:
        entries: in the dataset's order.
        make: gets key and content; raises :class:`RejectedError`.
        skip: of so many entries nothing is made. Their names still count for duplicates.
        text_needed: whether a study without findings and impression is rejected.

    Raises:
        ValueError: skip is negative.
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
        again = key in seen
        seen.add(key)
        if place < skip:
            continue
        try:
            if not key:
                raise RejectedError("missing_value", "it has no id")
            if len(key) > MAX_KEY:
                raise RejectedError("bad_id", f"its id has {len(key)} characters")
            if again:
                raise RejectedError("duplicate_id")
            yield _checked(make(key, entry.content), text_needed)
        except RejectedError as error:
            yield Reject(key=key if 0 < len(key) <= MAX_KEY else f"entry {place}", reason=error.reason, detail=error.detail)


def safe_key(name: str) -> str:
    """Return a name as a key: letters, digits, ``-`` and ``_``, anything else a ``-``.

    >>> safe_key("patient1/study2"), safe_key("1.2.840")
    ('patient1-study2', '1-2-840')
    """
    return _UNSAFE.sub("-", name).strip("-")


def find_image(root: Path, name: str, *, view: str = "") -> SourceImage:
    """Find an image that a dataset names.

    Args:
        root: the folder of images, which a name must not lead out of.
        name: relative to it.
        view: as the dataset says.

    Raises:
        RejectedError: there is no name, no such file, or it is outside.
    """
    if not name.strip():
        raise RejectedError("missing_value", "an image has no file name")
    if "\0" in name:
        raise RejectedError("outside_folder", "a file name holds NUL")
    top = os.path.abspath(root)
    path = os.path.abspath(os.path.join(top, name))
    if not path.startswith(os.path.join(top, "")):
        raise RejectedError("outside_folder", tellable(name))
    if not os.path.isfile(path):
        raise RejectedError("missing_image", tellable(name))
    return SourceImage(path=Path(path), view=view, root=Path(top))


def find_images(
    views: Iterable[View], find: Callable[[View], SourceImage]
) -> tuple[tuple[SourceImage, ...], tuple[LostImage, ...]]:
    """Find the images of a study; one that is not there costs the others nothing.

    Args:
        views: that the study names.
        find: as :func:`find_image`.

    Returns:
        Those that are there, and those that are not.

    Raises:
        RejectedError: none is there; the reason is that of the first. ``no_image`` where the study names none.
    """
    found: list[SourceImage] = []
    lost: list[LostImage] = []
    first: RejectedError | None = None
    for one in views:
        try:
            found.append(find(one))
        except RejectedError as error:
            first = first or error
            lost.append(LostImage(reason=error.reason, detail=error.detail))
    if not found:
        raise first or RejectedError("no_image")
    return tuple(found), tuple(lost)


def tellable(name: str) -> str:
    """Return a file's name if it looks like one, otherwise how long it is: it may be a report.

    >>> tellable("a/b.png"), tellable("The heart is large.")
    ('a/b.png', 'a name of 19 characters')
    """
    return name if _TELLABLE.fullmatch(name) else f"a name of {len(name)} characters"


def known(**values: str) -> dict[str, str]:
    """Return what has a value, for a study's ``meta``."""
    return {name: value for name, value in values.items() if value}


def needed(values: dict[str, str]) -> None:
    """Refuse an entry without one of these values.

    Raises:
        RejectedError: one is empty; the detail names it.
    """
    if missing := [name for name, value in values.items() if not value]:
        raise RejectedError("missing_value", ", ".join(missing))


def _checked(study: SourceStudy, text_needed: bool) -> SourceStudy:
    """Mend a study's text and see that there is some."""
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


def text_report(**sections: str) -> RawReport:
    """Return a report of sections whose white space is only spaces."""
    return RawReport(**{name: " ".join(text.split()) for name, text in sections.items()})
