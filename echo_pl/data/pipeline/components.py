"""Interfaces of the pipeline's components: normalizer, check, translator, search for near-duplicates.

A component for other processes comes as a recipe: small, hashable by value and picklable. Each process builds it once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from echo_pl.data.readers.reader import CorpusReader
from echo_pl.reports.completeness import Problem
from echo_pl.reports.near_duplicates import Duplicate
from echo_pl.reports.report import NormalizedReport, RawReport

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class RefusedError(ValueError):
    """One report cannot be used.

    Args:
        reason: Short name that is counted.
        detail: Explanation for a person, without words of the report.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Recipe(Protocol, Generic[T_co]):
    """Hashable description of a component. Equal recipes build equal components."""

    @property
    def name(self) -> str:
        """Name with version: part of a corpus's identity."""
        ...

    def build(self) -> T_co:
        """Build the component."""
        ...

    def __hash__(self) -> int: ...


class Engine(Protocol):
    """Normalizer of reports."""

    def normalize_many(self, reports: Iterable[RawReport]) -> Iterator[NormalizedReport | RefusedError]:
        """Yield each report normalized, or its error, in order."""
        ...


class Translator(Protocol):
    """Translator of normalized reports into Chinese."""

    def translate_many(self, reports: Iterable[NormalizedReport]) -> Iterator[NormalizedReport | RefusedError]:
        """Yield each report translated, or its error, in order."""
        ...


class DuplicateSearch(Protocol):
    """Search for near-duplicates among many texts, without all of their pairs in memory."""

    @property
    def name(self) -> str:
        """Name of the comparison, with version."""
        ...

    def find(
        self, train: Iterable[tuple[str, str]], held_out: Iterable[tuple[str, str]], threshold: float, kept: Path
    ) -> Iterable[Duplicate]:
        """Return the (key, text) of the training split that resemble another one or a held-out one.

        Costly intermediate results may be stored in the folder ``kept``, which a restarted search gets again.
        """
        ...


class Check(Protocol):
    """Check of a normalized report."""

    def problems(self, raw: RawReport, normalized: NormalizedReport) -> Sequence[Problem]:
        """Return everything that the report lacks or invents; raise ValueError if it cannot be checked."""
        ...


Redact = Callable[[RawReport], tuple[RawReport, Mapping[str, int]]]
"""Function that removes everything that could identify a person, and counts it by kind: ``date``, ``name``, ``id`` ..."""
TrainTokenizer = Callable[[Iterable[str], Path], None]
"""Function that writes a tokenizer into a folder."""


@dataclass(frozen=True, kw_only=True)
class Components:
    """Components that make one corpus."""

    source: Path
    """Folder or file of the dataset."""
    reader: CorpusReader
    reader_options: Mapping[str, str] = field(default_factory=dict)
    """Options of the reader, for the record."""
    engine: Recipe[Engine]
    engine_waits: bool = False
    """True for an engine that mostly waits for an endpoint: it runs in this process alone."""
    check: Recipe[Check]
    redact: Redact | None = None
    translator: Recipe[Translator] | None = None
    duplicates: DuplicateSearch | None = None
    general: Path | None = None
    """JSON lines of general image-text samples."""
    tokenizer: TrainTokenizer
    tokenizer_name: str
    """``trained``, or the identity of a copied one."""

    @property
    def base(self) -> Path:
        """Folder that paths of images are relative to, so that a dataset may be moved."""
        return self.source if self.source.is_dir() else self.source.parent


@cache
def built(recipe: Recipe[T]) -> T:
    """Return the component of a recipe, built once in each process."""
    return recipe.build()
