"""The vocabulary of training reports: from a corpus folder, or from a text file. For the share of words that nobody writes."""

from __future__ import annotations

import json
from pathlib import Path

from tqdm.auto import tqdm

from echo_pl.data.store.corpus_index import CorpusIndex
from echo_pl.data.store.shard_reader import IMAGE_SUFFIXES, read_samples
from echo_pl.data.store.study import Version
from echo_pl.evaluation.cases import formatted
from echo_pl.evaluation.metric_choice import Vocabulary
from echo_pl.metrics.words import Words
from echo_pl.structs import ReportText


def training_vocabulary(path: Path, words: Words, version: Version) -> Vocabulary:
    """Every word of the training split of a corpus, or of a text file.

    Args:
        path: folder of a corpus, or a UTF-8 file.
        words: how texts become words; the same as in the scores.
        version: which report of a corpus.

    Raises:
        ValueError: a corpus without training reports of this version, or a file that is no text.
    """
    if path.is_dir():
        index = CorpusIndex.load(path)
        return Vocabulary(
            name=f"{version} training reports of corpus {index.fingerprint}", words=_of_corpus(path, index, words, version)
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    return Vocabulary(name=path.name, words=frozenset(words.split(text)))


def _of_corpus(folder: Path, index: CorpusIndex, words: Words, version: Version) -> frozenset[str]:
    found: set[str] = set()
    with tqdm(total=index.count("train"), desc="training words", unit="study") as bar:
        for shard in index.shards("train"):
            for _, sample in read_samples(folder, shard, range(shard.samples), passed_over=IMAGE_SUFFIXES):
                record = json.loads(sample.fields["json"])
                fields = record if version == "normalized" else record["raw"]
                if fields is None:
                    raise ValueError(f"sample {sample.key} of {folder} has no {version} report: give --version")
                report = ReportText(findings=fields["findings"], impression=fields["impression"])
                found.update(words.split(formatted(report)))
                bar.update()
    return frozenset(found)
