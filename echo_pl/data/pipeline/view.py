"""A page of the studies of a shard: images, both versions of the report, imputed sentences marked, labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from echo_pl.data.pipeline.page import corpus_page
from echo_pl.data.store.corpus_index import CorpusIndex, Shard
from echo_pl.data.store.shard_reader import decode_study, read_samples
from echo_pl.data.store.study import Study
from echo_pl.io.atomic import atomic_file


def view_shard(path: Path, out: Path, *, studies: int = 20, keys: Sequence[str] = ()) -> int:
    """Write the page, and return the number of studies on it.

    Args:
        path: shard in its corpus folder.
        out: page to write, readable by its owner alone.
        studies: most studies from the start of the shard.
        keys: ids of studies to show instead.

    Raises:
        FileNotFoundError: the shard is in no corpus folder.
        ValueError: the corpus has no such shard, the shard is damaged, or it has no such study.
    """
    index = CorpusIndex.load(path.parent)
    found = list(_wanted(path.parent, _named(index, path.name), studies, keys))
    if missing := sorted(set(keys) - {study.key for study in found}):
        raise ValueError(f"{path.name} has no study {missing[0]!r} ({len(missing)} missing in all)")
    title = f"{index.corpus}, {path.name}"
    with atomic_file(out, private=True) as file:
        file.write(corpus_page(title, index.fingerprint, found).encode())
    return len(found)


def _named(index: CorpusIndex, name: str) -> Shard:
    names = [shard for shards in index.splits.values() for shard in shards if shard.name == name]
    if not names:
        raise ValueError(f"the index has no shard {name!r}")
    return names[0]


def _wanted(folder: Path, shard: Shard, studies: int, keys: Sequence[str]) -> Iterator[Study]:
    samples = (raw for _, raw in read_samples(folder, shard, range(shard.samples)))
    chosen = (raw for raw in samples if raw.key in keys) if keys else islice(samples, studies)
    return (decode_study(raw) for raw in chosen)
