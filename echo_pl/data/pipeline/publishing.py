"""Step 7: from the work folder to a corpus folder, the index last.

Everything is renamed or written whole, and can be done again at any point; what is not finished has no index. Knows files;
nothing of what is in a shard.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from echo_pl.data.pipeline.arranging import LEFT_OUT, REVIEW
from echo_pl.data.pipeline.card import Card
from echo_pl.data.pipeline.entries import LeftOut
from echo_pl.data.pipeline.files import read_lines, write_lines
from echo_pl.data.pipeline.listing import INCOMPLETE
from echo_pl.data.pipeline.plan import CARD
from echo_pl.data.pipeline.sharding import WrittenShard
from echo_pl.data.pipeline.tokenizing import TOKENIZER
from echo_pl.data.store.corpus_index import CorpusIndex, Options, Shard, attach_folder, corpus_recipe
from echo_pl.io.atomic import atomic_file, write_json

REJECTS: Final = "rejects.jsonl"
README: Final = "README.md"


def make_index(corpus: str, options: Options, written: Sequence[WrittenShard], *, shard_size: int) -> CorpusIndex:
    """The index of all shards with studies; there is one at least."""
    splits: dict[str, tuple[Shard, ...]] = {}
    labels: set[str] = set()
    for one in written:
        if one.shard is not None:
            splits[one.split] = (*splits.get(one.split, ()), one.shard)
            labels.update(one.counts.get("labels", {}))
    counts = {split: sum(shard.samples for shard in shards) for split, shards in splits.items()}
    recipe = corpus_recipe(corpus, options, counts, shard_size)
    return CorpusIndex(corpus=corpus, options=options, labels=tuple(sorted(labels)), splits=splits, recipe=recipe)


def all_left_out(arranged: Path, general: Iterable[LeftOut], written: Iterable[WrittenShard]) -> Iterator[LeftOut]:
    """All that stands in no shard, step by step, without reports."""
    for _, record in read_lines(arranged / LEFT_OUT):
        yield LeftOut(**record)
    yield from general
    for one in written:
        yield from one.left_out


def check_any(written: Iterable[WrittenShard], left_out: Iterable[LeftOut]) -> None:
    """See that there is a study to publish.

    Raises:
        ValueError: there is none, with what became of them.
    """
    if any(one.shard is not None for one in written):
        return
    reasons = Counter(f"{one.step}: {one.reason}" for one in left_out)
    listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    hint = "; such reports have no findings or no impression: keep_incomplete (--keep-incomplete) uses them"
    raise ValueError(f"not one study is left to write ({listed}{hint if f'read: {INCOMPLETE}' in reasons else ''})")


def move_shards(shards: Path, out: Path, index: CorpusIndex) -> None:
    """Put the shards where the index says; those that are there already stay."""
    for split in index.splits.values():
        for shard in split:
            if (shards / shard.name).is_file():
                (shards / shard.name).replace(out / shard.name)


def write_left_out(out: Path, arranged: Path, left_out: Iterable[LeftOut]) -> None:
    """Write the files of rejects and of reports to review, which their owner alone may read."""
    records = ({name: value for name, value in asdict(one).items() if name != "report"} for one in left_out)
    write_lines(out / REJECTS, records)
    with atomic_file(out / REVIEW, private=True) as file, (arranged / REVIEW).open("rb") as found:
        shutil.copyfileobj(found, file)


def write_index(out: Path, index: CorpusIndex) -> None:
    """Write the index, with the tokenizer's files on it: the corpus is finished."""
    if attach_folder(out, TOKENIZER, index) is index:
        index.save(out)


def write_card(out: Path, card: Card) -> None:
    """Write the card in both forms."""
    with atomic_file(out / README) as file:
        file.write(card.as_markdown().encode())
    write_json(out / CARD, card.record)
