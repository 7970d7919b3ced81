"""Step 7: from the work folder to a corpus folder: shards, tokenizer, records of what was left out, card, and last the index.

Each file is renamed or written atomically, and every step can be repeated; an unfinished corpus has no index.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from echo_pl.data.loading.request import GENERAL, GENERAL_PROMPT
from echo_pl.data.pipeline.card import Card
from echo_pl.data.pipeline.components import TrainTokenizer
from echo_pl.data.pipeline.entries import INCOMPLETE, LeftOut, read_lines, write_lines
from echo_pl.data.pipeline.plan import CARD
from echo_pl.data.pipeline.shards import WrittenShard
from echo_pl.data.pipeline.splitting import LEFT_OUT, REVIEW
from echo_pl.data.store.corpus_index import CorpusIndex, Options, Shard, attach_folder, corpus_recipe
from echo_pl.data.store.shard_reader import IMAGE_SUFFIXES, read_samples
from echo_pl.io.atomic import atomic_file, atomic_folder, write_json, write_text_atomic
from echo_pl.io.stop_signals import check_stop
from echo_pl.reports.response import FORMS, Language, format_response
from echo_pl.structs import ReportText

REJECTS: Final = "rejects.jsonl"
README: Final = "README.md"
TOKENIZER: Final = "tokenizer"
"""Folder of the tokenizer in the corpus folder."""


def make_index(corpus: str, options: Options, written: Sequence[WrittenShard], *, shard_size: int) -> CorpusIndex:
    """Return the index of all shards with studies; at least one exists."""
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
    """Yield everything that is in no shard, step by step, without reports."""
    for _, record in read_lines(arranged / LEFT_OUT):
        yield LeftOut(**record)
    yield from general
    for one in written:
        yield from one.left_out


def check_any(written: Iterable[WrittenShard], left_out: Iterable[LeftOut]) -> None:
    """Raise ValueError, with the reasons, if no study is left to publish."""
    if any(one.shard is not None for one in written):
        return
    reasons = Counter(f"{one.step}: {one.reason}" for one in left_out)
    listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    hint = "; such reports have no findings or no impression: keep_incomplete (--keep-incomplete) uses them"
    raise ValueError(f"not one study is left to write ({listed}{hint if f'read: {INCOMPLETE}' in reasons else ''})")


def move_shards(shards: Path, out: Path, index: CorpusIndex) -> None:
    """Move the shards that are not in the corpus folder yet."""
    for split in index.splits.values():
        for shard in split:
            if (shards / shard.name).is_file():
                (shards / shard.name).replace(out / shard.name)


def write_tokenizer(train: TrainTokenizer, out: Path, index: CorpusIndex, *, reports: int) -> None:
    """Write a tokenizer into the corpus folder, unless one exists, from at most so many training studies."""
    if not (out / TOKENIZER).is_dir():
        with atomic_folder(out / TOKENIZER) as folder:
            train(_training_texts(out, index, reports), folder)


def write_left_out(out: Path, arranged: Path, left_out: Iterable[LeftOut]) -> None:
    """Write the files of rejects and of reports to review, readable by their owner alone."""
    write_lines(out / REJECTS, ({name: value for name, value in asdict(one).items() if name != "report"} for one in left_out))
    with atomic_file(out / REVIEW, private=True) as file, (arranged / REVIEW).open("rb") as found:
        shutil.copyfileobj(found, file)


def write_card(out: Path, card: Card) -> None:
    """Write the card in both forms."""
    write_text_atomic(out / README, card.as_markdown())
    write_json(out / CARD, card.record)


def write_index(out: Path, index: CorpusIndex) -> None:
    """Write the index, with the tokenizer's files in it: the corpus is finished."""
    if attach_folder(out, TOKENIZER, index) is index:
        index.save(out)


def _training_texts(out: Path, index: CorpusIndex, most: int) -> Iterator[str]:
    """Texts that training shows: instructions, both versions of reports, prompts and texts of general samples.

    Shards are shuffled already, so the first ones are a random sample.
    """
    split = "train" if "train" in index.splits else next(iter(index.splits))
    seen = 0
    for shard in index.shards(split):
        for _, raw in read_samples(out, shard, range(min(shard.samples, most - seen)), passed_over=IMAGE_SUFFIXES):
            check_stop()
            yield from _sample_texts(json.loads(raw.fields["json"]))
            seen += 1
        if seen >= most:
            return


def _sample_texts(record: Mapping[str, Any]) -> Iterator[str]:
    meta = record["meta"]
    if meta.get("kind") == GENERAL:
        yield from (meta.get("prompt", GENERAL_PROMPT), record["findings"])
        return
    form: Language = "zh" if meta.get("language") == "zh" else "en"
    yield from (FORMS[form].instruction, format_response(_report(record), form))
    if record["raw"] is not None:
        yield format_response(_report(record["raw"]), "en")


def _report(record: Mapping[str, Any]) -> ReportText:
    return ReportText(findings=record["findings"], impression=record["impression"])
