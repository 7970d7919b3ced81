"""Who does the work of the steps: what the pipeline asks of a normalizer, a check, a translator, a search for duplicates.

The pipeline knows these protocols only. What works in other processes comes as a recipe: small, comparable by value and
picklable, with ``build()``, which is called once in each process.
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
    """One report cannot be used; the others can.

    Args:
        reason: a short name that is counted.
        detail: more of it, for a person; none of a report's words.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Recipe(Protocol, Generic[T_co]):
    """How to make a part. Equal recipes make equal parts; hashable."""

    @property
    def name(self) -> str:
        """What it is, with its version: part of a corpus's identity."""
        ...

    def build(self) -> T_co:
        """Make it."""
        ...

    def __hash__(self) -> int: ...


class Engine(Protocol):
    """Normalizes reports, one after the other or several at once."""

    def normalize_many(self, reports: Iterable[RawReport]) -> Iterator[NormalizedReport | RefusedError]:
        """Yield each report normalized, or why it cannot be (none of its words), in their order."""
        ...


class Translator(Protocol):
    """Translates normalized reports into Chinese."""

    def translate_many(self, reports: Iterable[NormalizedReport]) -> Iterator[NormalizedReport | RefusedError]:
        """Yield each report translated, or why it cannot be (none of its words), in their order."""
        ...


class DuplicateSearch(Protocol):
    """Finds near-duplicates among many texts without holding all of their pairs."""

    @property
    def name(self) -> str:
        """What it compares by, with its version."""
        ...

    def find(
        self, train: Iterable[tuple[str, str]], held_out: Iterable[tuple[str, str]], threshold: float, kept: Path
    ) -> Iterable[Duplicate]:
        """Return which (key, text) of the training split are to go, as like another one or a held-out one.

        What was costly to find out may be kept in a folder, which is given again if the search is ended and begun anew.
        """
        ...


class Check(Protocol):
    """Says what a normalized report lacks or invents."""

    def problems(self, raw: RawReport, normalized: NormalizedReport) -> Sequence[Problem]:
        """Everything that is wrong; empty where it is complete.

        Raises:
            ValueError: it cannot tell, with the reason.
        """
        ...


Redact = Callable[[RawReport], tuple[RawReport, Mapping[str, int]]]
"""A report without what could name a person, and how often what was taken out: ``date``, ``name``, ``id`` ..."""
TrainTokenizer = Callable[[Iterable[str], Path], None]
"""Puts a tokenizer into a folder."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """All who take part in making one corpus."""

    source: Path
    """The dataset's place: a folder or a file."""
    reader: CorpusReader
    reader_options: Mapping[str, str] = field(default_factory=dict)
    """What the reader was told, for the record."""
    engine: Recipe[Engine]
    engine_waits: bool = False
    """Whether the engine waits for others more than it computes (an endpoint): it then runs in this process alone."""
    check: Recipe[Check]
    redact: Redact | None = None
    translator: Recipe[Translator] | None = None
    duplicates: DuplicateSearch | None = None
    general: Path | None = None
    """JSON lines of general image-text samples."""
    tokenizer: TrainTokenizer
    tokenizer_name: str
    """``trained``, or which one is copied."""

    @property
    def base(self) -> Path:
        """The folder that paths of images are kept relative to, so that a dataset may be moved."""
        return self.source if self.source.is_dir() else self.source.parent


@cache
def built(recipe: Recipe[T]) -> T:
    """What a recipe makes, once in each process."""
    return recipe.build()
