"""Writes studies into WebDataset shards: ``{key}.0.png``, ``{key}.1.png`` ... and ``{key}.json`` for each.

A corpus is written into a folder of its own under temporary names and renamed; its index comes last.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from echo_pl.data.store.corpus_index import (
    INDEX_NAME,
    SCHEMA_VERSION,
    CorpusIndex,
    Options,
    Shard,
    check_local,
    corpus_recipe,
)
from echo_pl.data.store.shard_reader import read_samples
from echo_pl.data.store.study import Study
from echo_pl.data.store.webdataset_secure import TarWriter
from echo_pl.io.atomic import PARTIAL, remove_partials, staging_folder

logger = logging.getLogger(__name__)


def write_corpus(
    folder: Path | str,
    splits: Mapping[str, Iterable[Study]],
    *,
    counts: Mapping[str, int],
    corpus: str,
    options: Options,
    labels: Iterable[str],
    shard_size: int = 500,
    bytes_per_study: int = 8_000,
    on_study: Callable[[Study], None] | None = None,
) -> CorpusIndex:
    """Write a corpus, or find that it is there already.

    Args:
        folder: Where to; created if need be.
        splits: Split name to its studies, consumed once.
        counts: Split name to the number of its studies.
        corpus: Which reader or generator made the studies.
        options: Everything that decided what they are; with ``counts`` and ``shard_size`` it identifies the corpus.
        labels: Every finding label of the corpus.
        shard_size: Studies in one shard.
        bytes_per_study: Estimate, to see beforehand whether the disk has room.
        on_study: Called after each study (a progress bar).

    Raises:
        ValueError: If the folder holds another corpus or foreign files, or a split yields another number of studies.
        OSError: If the disk has no room.
    """
    target = check_local(folder)
    counts = {split: count for split, count in counts.items() if count > 0}
    if not counts or shard_size < 1:
        raise ValueError(f"a corpus needs at least one study and shards of at least one, got {counts}, {shard_size}")
    recipe = corpus_recipe(corpus, options, counts, shard_size)
    found = find_corpus(target, recipe, corpus)
    if found is not None:
        logger.info("found the %s corpus %s in %s", corpus, found.fingerprint, target)
        return _with_lengths(target, found)
    target.mkdir(parents=True, exist_ok=True)
    check_disk(target, sum(counts.values()) * bytes_per_study)
    remove_partials(target)
    with staging_folder(target / PARTIAL) as folder:
        try:
            shards = {split: _write_split(folder, split, splits[split], counts[split], shard_size, on_study) for split in counts}
        except OSError as error:
            raise OSError(error.errno, f"cannot write shards to {target}: {error.strerror}; free some space") from error
        for split_shards in shards.values():
            for shard in split_shards:
                (folder / shard.name).replace(target / shard.name)
    index = CorpusIndex(corpus=corpus, options=dict(options), labels=tuple(labels), splits=shards, recipe=recipe)
    index.save(target)
    return index


def find_corpus(folder: Path, recipe: str, corpus: str) -> CorpusIndex | None:
    """Return the index if the folder holds this very corpus, None if it holds none.

    Raises:
        ValueError: If it holds another one, or shards without an index.
    """
    if (folder / INDEX_NAME).is_file():
        index = CorpusIndex.load(folder)
        if index.recipe == recipe:
            return index
        raise ValueError(
            f"{folder} already holds another corpus ({index.corpus}, recipe {index.recipe}) than the one asked for "
            f"({corpus}, recipe {recipe}); choose another folder or delete this one"
        )
    if folder.is_dir() and any(folder.glob("*.tar")):
        raise ValueError(f"{folder} holds shards but no {INDEX_NAME}; choose another folder or delete them")
    return None


def _with_lengths(folder: Path, index: CorpusIndex) -> CorpusIndex:
    """Add the lengths of reports to an index that was made without them; shards stay as they are."""
    if all(shard.characters for shards in index.splits.values() for shard in shards):
        return index

    def measured(shard: Shard) -> Shard:
        reports = (json.loads(raw.fields["json"]) for _, raw in read_samples(folder, shard, range(shard.samples)))
        return replace(shard, characters=tuple(_length(r["findings"], r["impression"]) for r in reports))

    splits = {split: tuple(measured(shard) for shard in shards) for split, shards in index.splits.items()}
    complete = replace(index, splits=splits)
    complete.save(folder)
    logger.info("added the lengths of reports to %s", folder / INDEX_NAME)
    return complete


def _length(findings: str, impression: str) -> int:
    return len(findings) + len(impression)


def check_disk(folder: Path, needed: int) -> None:
    """Check that the disk has room.

    Raises:
        OSError: If fewer than ``needed`` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{folder} has {free / 1e6:.0f} MB free, the corpus needs about {needed / 1e6:.0f} MB")


def _write_split(
    folder: Path,
    split: str,
    studies: Iterable[Study],
    count: int,
    shard_size: int,
    on_study: Callable[[Study], None] | None,
) -> tuple[Shard, ...]:
    shards: list[Shard] = []
    remaining = iter(studies)
    while (first := next(remaining, None)) is not None:
        path = folder / f"{split}-{len(shards):06d}.tar"
        # a file object, as webdataset's own opening is what WDS_SECURE forbids; mtime fixed: equal corpora, equal bytes
        characters: list[int] = []
        with path.open("wb") as file, TarWriter(file, mtime=0) as writer:
            for study in chain([first], islice(remaining, shard_size - 1)):
                writer.write(encode_study(study))
                characters.append(_length(study.normalized.findings, study.normalized.impression))
                if on_study is not None:
                    on_study(study)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append(
            Shard(
                name=path.name,
                samples=len(characters),
                bytes=path.stat().st_size,
                sha256=digest,
                characters=tuple(characters),
            )
        )
    written = sum(shard.samples for shard in shards)
    if written != count:
        raise ValueError(f"split {split} yielded {written} studies, {count} were announced")
    return tuple(shards)


def encode_study(study: Study) -> dict[str, Any]:
    """Return a study as the members of a WebDataset sample."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "findings": study.normalized.findings,
        "impression": study.normalized.impression,
        "raw": None if study.raw is None else {"findings": study.raw.findings, "impression": study.raw.impression},
        "labels": list(study.labels),
        "meta": dict(study.meta),
    }
    sample: dict[str, Any] = {"__key__": study.key}
    for place, image in enumerate(study.images):
        encoded = io.BytesIO()
        image.save(encoded, format="PNG", compress_level=1)
        sample[f"{place}.png"] = encoded.getvalue()
    sample["json"] = json.dumps(record, ensure_ascii=False).encode()
    return sample
