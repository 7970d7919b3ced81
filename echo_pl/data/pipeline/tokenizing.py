"""The tokenizer of a corpus: one that is trained on its reports, or one that the user has.

Reads finished shards; knows nothing of how tokenizers work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from echo_pl.data.loading.request import GENERAL, GENERAL_PROMPT
from echo_pl.data.pipeline.parts import TrainTokenizer
from echo_pl.data.store.corpus_index import CorpusIndex
from echo_pl.data.store.shard_reader import IMAGE_SUFFIXES, read_samples
from echo_pl.io.atomic import atomic_folder
from echo_pl.io.stop_signals import check_stop
from echo_pl.reports.response import FORMS, Language, format_response
from echo_pl.structs import ReportText

TOKENIZER: Final = "tokenizer"
"""Folder of it in the corpus folder."""


def put_tokenizer(make: TrainTokenizer, out: Path, index: CorpusIndex, *, reports: int) -> None:
    """Put a tokenizer into the corpus folder, unless one is there.

    Args:
        make: gets texts and a folder to put it into.
        out: the corpus folder, with the shards.
        index: of these.
        reports: so many training studies are shown to it at most.
    """
    if not (out / TOKENIZER).is_dir():
        with atomic_folder(out / TOKENIZER) as folder:
            make(_texts(out, index, reports), folder)


def _texts(out: Path, index: CorpusIndex, most: int) -> Iterator[str]:
    """What training shows: instructions and reports in both versions, prompts and texts of general samples.

    Shards are in random order already, so the first ones are a fair choice.
    """
    split = "train" if "train" in index.splits else next(iter(index.splits))
    seen = 0
    for shard in index.shards(split):
        for _, raw in read_samples(out, shard, range(min(shard.samples, most - seen)), passed_over=IMAGE_SUFFIXES):
            check_stop()
            yield from _shown(json.loads(raw.fields["json"]))
            seen += 1
        if seen >= most:
            return


def _shown(record: Mapping[str, Any]) -> Iterator[str]:
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
