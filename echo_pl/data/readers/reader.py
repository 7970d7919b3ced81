"""What a reader of a public or a hospital's dataset gives: studies as they lie on disk, and what could not be read.

Knows files and strings; nothing of normalized reports, shards or tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from echo_pl.reports.report import RawReport


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One image of a study, not opened yet."""

    path: Path
    view: str = ""
    """PA, AP, LATERAL ...; empty where the dataset does not say."""
    root: Path | None = None
    """The folder that the file must lie in when links are followed; None: anywhere."""


@dataclass(frozen=True, kw_only=True)
class LostImage:
    """An image that a study names and that cannot be used, where the study stays with its others."""

    reason: str
    """As in :class:`Reject`."""
    detail: str
    """Which it is, as far as its name looks like one."""


@dataclass(frozen=True, kw_only=True)
class SourceStudy:
    """One study as a dataset has it."""

    key: str
    """Unique in its dataset; letters, digits, ``-`` and ``_`` only."""
    patient: str
    """Splits are by patient. Where a dataset does not say: the study's key."""
    images: tuple[SourceImage, ...]
    """Those that are there."""
    report: RawReport
    split: str | None = None
    """Official split, where there is one: ``train``, ``val`` or ``test``."""
    modality: str = ""
    """DX, CR ... or what the dataset says; empty: unknown."""
    language: str = "en"
    labels: tuple[str, ...] = ()
    """Finding labels that come with the dataset."""
    meta: Mapping[str, str] = field(default_factory=dict)
    lost: tuple[LostImage, ...] = ()
    """Images that it names besides and that are not there."""


@dataclass(frozen=True, kw_only=True)
class Reject:
    """Something of a dataset that is left out, and why. Has no words of a report."""

    key: str
    """Of the study, or the file's name where there is no study."""
    reason: str
    """A short name that is counted: ``missing_image``, ``duplicate_id``, ``no_report`` ..."""
    detail: str = ""


class CorpusReader(Protocol):
    """A dataset on disk. Reading twice gives the same studies in the same order."""

    name: str
    licence: str
    """Short, for the dataset card."""
    citation: str

    def studies(self, *, skip: int = 0) -> Iterator[SourceStudy | Reject]:
        """Yield studies one by one, without opening images; what cannot be read is a :class:`Reject` and not the end.

        Args:
            skip: Leave out so many at the start, rejects counted; the rest is what it would be without. Cheaper than reading
                them: their images are not looked for and their reports not taken apart.

        Raises:
            FileNotFoundError: the dataset's own files are not where they should be.
            ValueError: columns are missing, or it is another dataset; the message names them.
        """
        ...
