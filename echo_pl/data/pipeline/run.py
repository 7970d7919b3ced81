"""Pipeline from a dataset's files to a corpus folder. A run that was killed at any moment continues when it is run again.

Each step reads the files of the step before and writes its own into the work folder. Its result is a function of these files
and of the plan alone, independent of processes, time and interruptions.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from echo_pl.data.pipeline.card import Card, make_card
from echo_pl.data.pipeline.components import Components, built
from echo_pl.data.pipeline.entries import EntryFiles, LeftOut, Listing, list_source, read_json
from echo_pl.data.pipeline.general import choose_general, general_places
from echo_pl.data.pipeline.normalize import Normalizing, Translating
from echo_pl.data.pipeline.plan import CARD, WORK, Plan, WorkDir, make_plan, open_work_dir
from echo_pl.data.pipeline.publish import (
    all_left_out,
    check_any,
    make_index,
    move_shards,
    write_card,
    write_index,
    write_left_out,
    write_tokenizer,
)
from echo_pl.data.pipeline.settings import Settings
from echo_pl.data.pipeline.shards import Sharding, ShardSlice, WrittenShard, shard_slices
from echo_pl.data.pipeline.splitting import Arrangement, Splitter, arrange, choose_splitter, find_duplicates
from echo_pl.data.store.corpus_index import CorpusIndex
from echo_pl.io.stop_signals import check_stop
from echo_pl.io.workers import Workers

logger = logging.getLogger(__name__)

SECONDS_IN_A_LOG = 30.0
"""Seconds between two states of a progress bar in a file, where they do not overwrite each other."""


@dataclass(frozen=True, kw_only=True)
class PreparedCorpus:
    """Finished corpus."""

    index: CorpusIndex
    card: Card
    found: bool
    """True if it existed already."""


def prepare(
    out: Path | str,
    settings: Settings,
    components: Components,
    *,
    workers: int = 0,
    progress: bool = False,
    keep_work: bool = False,
) -> PreparedCorpus:
    """Make a corpus, continue an interrupted run, or load the finished corpus.

    Args:
        out: Corpus folder.
        settings: Settings of the corpus.
        components: Reader, normalizer, and the other components.
        workers: Processes that normalize and open images; 0: this one. The corpus does not depend on it.
        progress: Show progress bars.
        keep_work: Keep the work folder, which contains report text.

    Raises:
        FileNotFoundError: If the source is missing.
        ValueError: If the folder contains another corpus, or the source is another dataset, has changed, or has no usable study.
        OSError: If the disk is full; the same call continues when it has space.
        RuntimeError: If a worker has died.
    """
    plan = make_plan(settings, components)
    with open_work_dir(out, plan) as place:
        if place is not None:
            with Workers(workers) as pool:
                _Pipeline(settings, components, plan, place, pool, progress).run()
        if not keep_work:
            shutil.rmtree(Path(out) / WORK, ignore_errors=place is None)
    index, card = CorpusIndex.load(out), Card(record=read_json(Path(out) / CARD))
    return PreparedCorpus(index=index, card=card, found=place is None)


@dataclass(frozen=True)
class _Pipeline:
    """All steps of one corpus."""

    settings: Settings
    components: Components
    plan: Plan
    place: WorkDir
    workers: Workers
    progress: bool

    def run(self) -> None:
        listing = self._list()
        splitter = choose_splitter(self.settings, listing)
        entries = self._normalize(listing)
        duplicates = self._find_duplicates(entries, listing, splitter)
        entries = self._translate(entries, listing, duplicates)
        arrangement = self._arrange(entries, listing, splitter, duplicates)
        self._choose_general(arrangement)
        written = self._write_shards(entries, arrangement)
        self._publish(listing, splitter, arrangement, written)

    def _list(self) -> Listing:
        with self._bar("read", None) as advance:
            return list_source(self.components.reader, self._files("listed"), self.settings, advance)

    def _normalize(self, listing: Listing) -> EntryFiles:
        task = Normalizing(
            source=self._files("listed"),
            target=self._files("normalized"),
            engine=self.components.engine,
            check=self.components.check,
            redact=self.components.redact,
        )
        return self._each_chunk("normalize", Workers(0) if self.components.engine_waits else self.workers, task, listing)

    def _find_duplicates(self, entries: EntryFiles, listing: Listing, splitter: Splitter) -> Mapping[int, str]:
        if self.components.duplicates is None:
            return {}
        with self._bar("near-duplicates", 2 * listing.entries) as advance:
            return find_duplicates(
                self.components.duplicates,
                self.settings,
                entries,
                listing,
                splitter,
                vectors=self._folder("vectors"),
                result=self._folder("duplicates.json"),
                on_entries=advance,
            )

    def _translate(self, entries: EntryFiles, listing: Listing, duplicates: Mapping[int, str]) -> EntryFiles:
        if self.components.translator is None:
            return entries
        task = Translating(
            source=entries,
            target=self._files("translated"),
            translator=built(self.components.translator),
            share=self.settings.chinese_share,
            seed=self.settings.seed,
            left_out=duplicates,
        )
        return self._each_chunk("translate", Workers(0), task, listing)

    def _arrange(self, entries: EntryFiles, listing: Listing, splitter: Splitter, duplicates: Mapping[int, str]) -> Arrangement:
        with self._bar("arrange", listing.entries) as advance:
            return arrange(entries, listing, splitter, duplicates, self._folder("arranged"), advance)

    def _choose_general(self, arrangement: Arrangement) -> None:
        if self.components.general is not None:
            count = round(self.settings.general_weight * arrangement.counts.get("train", 0))
            choose_general(self.components.general, count, seed=self.settings.seed, files=self._files("general"))

    def _write_shards(self, entries: EntryFiles, arrangement: Arrangement) -> list[WrittenShard]:
        task = Sharding(
            entries=entries,
            general=self._files("general"),
            folder=self._folder("shards"),
            corpus=self.components.reader.name,
            max_pixels=self.settings.max_pixels,
            anonymous=self.settings.redact,
        )
        extra = general_places(task.general)
        size, seed = self.settings.shard_size, self.settings.seed

        def slices() -> Iterator[ShardSlice]:
            for split in arrangement.counts:
                general = extra if split == "train" else extra[:0]
                yield from shard_slices(split, arrangement.places(split), general, size=size, seed=seed)

        with self._bar("shards", sum(arrangement.counts.values()) + len(extra)) as advance:

            def missing() -> Iterator[ShardSlice]:
                for one in slices():
                    if task.is_done(one):
                        advance(len(one.places))
                    else:
                        yield one

            for count in self.workers.run(task, missing()):
                advance(count)
        return [task.written(one) for one in slices()]

    def _publish(self, listing: Listing, splitter: Splitter, arrangement: Arrangement, written: list[WrittenShard]) -> None:
        out, reader, general = self.place.out, self.components.reader, self._files("general")
        rejects = [one for one in (general.read(0) if general.path(0).is_file() else ()) if isinstance(one, LeftOut)]

        def left_out() -> Iterator[LeftOut]:
            return all_left_out(arrangement.folder, rejects, written)

        check_any(written, left_out())
        options = {**self.plan, "listing": listing.digest}
        index = make_index(reader.name, options, written, shard_size=self.settings.shard_size)
        card = make_card(
            index=index,
            plan=self.plan,
            reader=reader,
            official_splits=splitter.official,
            listing=listing,
            arrangement=arrangement,
            shards=written,
            left_out=left_out(),
        )
        move_shards(self._folder("shards"), out, index)
        write_tokenizer(self.components.tokenizer, out, index, reports=self.settings.tokenizer_reports)
        write_left_out(out, arrangement.folder, left_out())
        write_card(out, card)
        write_index(out, index)

    def _folder(self, name: str) -> Path:
        return self.place.work / name

    def _files(self, name: str) -> EntryFiles:
        return EntryFiles(self._folder(name), self.components.base)

    def _each_chunk(self, step: str, workers: Workers, task: Normalizing | Translating, listing: Listing) -> EntryFiles:
        with self._bar(step, listing.entries) as advance:

            def missing() -> Iterator[int]:
                for number in listing.chunks:
                    if task.target.path(number).is_file():
                        advance(listing.entries_of(number))
                    else:
                        yield number

            for count in workers.run(task, missing()):
                advance(count)
        return task.target

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
