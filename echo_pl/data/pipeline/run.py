"""The whole way from a dataset's files to a corpus folder; run again, it goes on where it was.

Each step takes the files of the one before and leaves its own in the work folder. What a step makes is a function of these
files and of the plan alone: not of who does it, when, or how often it was begun.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from echo_pl.data.loading.order import Indices
from echo_pl.data.pipeline.arranging import Arrangement, arrange
from echo_pl.data.pipeline.card import Card, make_card
from echo_pl.data.pipeline.duplicates import find_duplicates
from echo_pl.data.pipeline.entries import LeftOut, read_entries
from echo_pl.data.pipeline.files import read_json
from echo_pl.data.pipeline.general import choose_general
from echo_pl.data.pipeline.listing import Listing, chunk_path, list_source
from echo_pl.data.pipeline.normalizing import Normalizing
from echo_pl.data.pipeline.parts import Parts, built
from echo_pl.data.pipeline.plan import CARD, WORK, Plan, Workplace, make_plan, workplace
from echo_pl.data.pipeline.publishing import (
    all_left_out,
    check_any,
    make_index,
    move_shards,
    write_card,
    write_index,
    write_left_out,
)
from echo_pl.data.pipeline.settings import Settings
from echo_pl.data.pipeline.sharding import Sharding, ShardSlice, WrittenShard, general_places, shard_slices
from echo_pl.data.pipeline.splits import Splitter, choose_splitter
from echo_pl.data.pipeline.tokenizing import put_tokenizer
from echo_pl.data.pipeline.translating import Translating
from echo_pl.data.store.corpus_index import CorpusIndex
from echo_pl.io.stop_signals import check_stop
from echo_pl.io.workers import Workers

logger = logging.getLogger(__name__)

SECONDS_IN_A_LOG = 30.0
"""Between two states of a bar where they do not overwrite each other: a file instead of a terminal."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A finished corpus."""

    index: CorpusIndex
    card: Card
    found: bool
    """Whether it was there already."""


def prepare(
    out: Path | str, settings: Settings, parts: Parts, *, workers: int = 0, progress: bool = False, keep_work: bool = False
) -> Corpus:
    """Make a corpus, or go on making it, or find that it is there.

    Args:
        out: the corpus folder.
        settings: what it is to be.
        parts: who makes it.
        workers: processes that normalize and open images; 0: this one. The corpus does not depend on it.
        progress: whether to show bars.
        keep_work: whether to keep the work folder, which holds report text, when all is done.

    Raises:
        FileNotFoundError: the source is not there.
        ValueError: the folder holds another corpus; the source is another dataset, has changed, or gives not one study.
        OSError: the disk is full; the same call goes on when there is room.
        RuntimeError: a worker has died.
    """
    plan = make_plan(settings, parts)
    with workplace(out, plan) as place:
        if place is not None:
            with Workers(workers) as staff:
                _Making(settings=settings, parts=parts, plan=plan, place=place, staff=staff, progress=progress).all_steps()
        if not keep_work:
            shutil.rmtree(Path(out) / WORK, ignore_errors=place is None)
    index, card = CorpusIndex.load(out), Card(record=read_json(Path(out) / CARD))
    return Corpus(index=index, card=card, found=place is None)


@dataclass(frozen=True, kw_only=True)
class _Making:
    """One corpus in the making."""

    settings: Settings
    parts: Parts
    plan: Plan
    place: Workplace
    staff: Workers
    progress: bool

    def all_steps(self) -> None:
        """From the source to the index."""
        listing = self._list()
        splitter = choose_splitter(self.settings, listing)
        entries = self._normalize(listing)
        duplicates = self._find_duplicates(entries, listing, splitter)
        entries = self._translate(entries, listing, duplicates)
        arrangement = self._arrange(entries, listing, splitter, duplicates)
        general = self._choose_general(arrangement)
        written = self._write_shards(entries, arrangement, general)
        self._publish(listing, splitter, arrangement, written)

    def _list(self) -> Listing:
        with self._bar("read", None) as advance:
            return list_source(self.parts.reader, self.parts.base, self._folder("listed"), self.settings, advance)

    def _normalize(self, listing: Listing) -> Path:
        task = Normalizing(
            base=self.parts.base,
            listed=listing.folder,
            folder=self._folder("normalized"),
            engine=self.parts.engine,
            check=self.parts.check,
            redact=self.parts.redact,
        )
        here = Workers(0) if self.parts.engine_waits else self.staff
        self._each_chunk("normalize", here, task, listing, task.folder)
        return task.folder

    def _find_duplicates(self, entries: Path, listing: Listing, splitter: Splitter) -> Mapping[int, str]:
        if self.parts.duplicates is None or self.settings.near_duplicates is None:
            return {}
        with self._bar("near-duplicates", 2 * listing.entries) as advance:
            return find_duplicates(
                self.parts.duplicates,
                self.settings.near_duplicates,
                what=self.settings.duplicate_text,
                folder=entries,
                listing=listing,
                base=self.parts.base,
                splitter=splitter,
                kept=self._folder("vectors"),
                result=self._folder("duplicates.json"),
                on_entries=advance,
            )

    def _translate(self, entries: Path, listing: Listing, duplicates: Mapping[int, str]) -> Path:
        if self.parts.translator is None:
            return entries
        task = Translating(
            base=self.parts.base,
            normalized=entries,
            folder=self._folder("translated"),
            translator=built(self.parts.translator),
            share=self.settings.chinese_share,
            seed=self.settings.seed,
            left_out=duplicates,
        )
        self._each_chunk("translate", Workers(0), task, listing, task.folder)
        return task.folder

    def _arrange(self, entries: Path, listing: Listing, splitter: Splitter, duplicates: Mapping[int, str]) -> Arrangement:
        with self._bar("arrange", listing.entries) as advance:
            return arrange(
                entries=entries,
                listing=listing,
                base=self.parts.base,
                splitter=splitter,
                duplicates=duplicates,
                folder=self._folder("arranged"),
                on_entries=advance,
            )

    def _choose_general(self, arrangement: Arrangement) -> Path | None:
        if self.parts.general is None:
            return None
        folder = self._folder("general")
        count = round(self.settings.general_weight * arrangement.counts.get("train", 0))
        choose_general(self.parts.general, count, seed=self.settings.seed, base=self.parts.base, result=chunk_path(folder, 0))
        return folder

    def _write_shards(self, entries: Path, arrangement: Arrangement, general: Path | None) -> list[WrittenShard]:
        task = Sharding(
            base=self.parts.base,
            entries=entries,
            general=self._folder("general"),
            folder=self._folder("shards"),
            corpus=self.parts.reader.name,
            max_pixels=self.settings.max_pixels,
            anonymous=self.settings.redact,
        )
        extra = np.zeros((0, 2), dtype=np.int64) if general is None else general_places(general)
        with self._bar("shards", sum(arrangement.counts.values()) + len(extra)) as advance:
            todo = self._unfinished(task, self._slices(arrangement, extra), advance)
            for count in self.staff.run(task, todo):
                advance(count)
        return [task.written(one) for one in self._slices(arrangement, extra)]

    def _slices(self, arrangement: Arrangement, general: Indices) -> Iterator[ShardSlice]:
        for split in arrangement.counts:
            extra = general if split == "train" else general[:0]
            yield from shard_slices(split, arrangement.places(split), extra, size=self.settings.shard_size, seed=self.settings.seed)

    def _publish(self, listing: Listing, splitter: Splitter, arrangement: Arrangement, written: list[WrittenShard]) -> None:
        out, reader = self.place.out, self.parts.reader
        general = list(self._general_rejects())
        check_any(written, all_left_out(arrangement.folder, general, written))
        options = {**self.plan, "listing": listing.digest}
        index = make_index(reader.name, options, written, shard_size=self.settings.shard_size)
        card = make_card(
            index=index,
            plan=self.plan,
            official_splits=splitter.official,
            licence=reader.licence,
            citation=reader.citation,
            listing_digest=listing.digest,
            entries=listing.entries,
            patients=arrangement.patients,
            shared_patients=arrangement.shared_patients,
            shards=written,
            left_out=all_left_out(arrangement.folder, general, written),
        )
        move_shards(self._folder("shards"), out, index)
        put_tokenizer(self.parts.tokenizer, out, index, reports=self.settings.tokenizer_reports)
        write_left_out(out, arrangement.folder, all_left_out(arrangement.folder, general, written))
        write_card(out, card)
        write_index(out, index)

    def _general_rejects(self) -> Iterator[LeftOut]:
        path = chunk_path(self._folder("general"), 0)
        if path.is_file():
            yield from (one for one in read_entries(path, self.parts.base) if isinstance(one, LeftOut))

    def _folder(self, name: str) -> Path:
        return self.place.work / name

    def _each_chunk(self, step: str, staff: Workers, task: Callable[[int], int], listing: Listing, folder: Path) -> None:
        with self._bar(step, listing.entries) as advance:
            for count in staff.run(task, _missing(listing, folder, advance)):
                advance(count)

    @staticmethod
    def _unfinished(task: Sharding, slices: Iterable[ShardSlice], advance: Callable[[int], None]) -> Iterator[ShardSlice]:
        for one in slices:
            if task.is_done(one):
                advance(len(one.places))
            else:
                yield one

    @contextmanager
    def _bar(self, step: str, total: int | None) -> Iterator[Callable[[int], None]]:
        logger.info("%s: begins", step)
        often = 0.1 if sys.stderr.isatty() else SECONDS_IN_A_LOG
        with tqdm(
            total=total,
            desc=f"{step:15}",
            unit=" studies",
            mininterval=often,
            maxinterval=max(often, 10),
            disable=not self.progress,
        ) as bar:

            def advance(count: int) -> None:
                check_stop()
                bar.update(count)

            yield advance


def _missing(listing: Listing, folder: Path, advance: Callable[[int], None]) -> Iterator[int]:
    """Numbers of the files that a step has yet to write."""
    for number in listing.chunks:
        if chunk_path(folder, number).is_file():
            advance(listing.entries_of(number))
        else:
            yield number
