"""Corpus folders of drawn or labelled images: shards, index, and a tokenizer trained on the reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Never

from tqdm import tqdm

from echo_pl.data.loading.tokenizer import train_tokenizer
from echo_pl.data.store.corpus_index import CorpusIndex, attach_folder
from echo_pl.data.store.shard_reader import decode_study, read_samples
from echo_pl.data.store.shard_writer import write_corpus
from echo_pl.data.store.study import Study
from echo_pl.data.synthetic.grammar import Wording
from echo_pl.data.synthetic.nih import NIHCorpus
from echo_pl.data.synthetic.synthetic import SyntheticCorpus
from echo_pl.io.atomic import atomic_folder
from echo_pl.reports.response import FORMS, format_response

TOKENIZER_STUDIES = 5_000
"""Reports of the training split that the tokenizer is trained on, at most."""


def make_synthetic(
    out: Path | str,
    *,
    train: int = 6000,
    val: int = 300,
    test: int = 2000,
    seed: int = 0,
    wording: Wording = "peaked",
    image_size: int = 64,
    vocab_size: int = 640,
    shard_size: int = 500,
    progress: bool = True,
) -> Path:
    """Make the synthetic corpus in ``out``, or find that it is there already.

    Args:
        out: Corpus folder.
        train: Studies of the training split.
        val: Studies of the validation split.
        test: Studies of the test split.
        seed: Seed of the corpus.
        wording: ``peaked`` or ``even`` shares of the wordings.
        image_size: Width and height of the images in pixels.
        vocab_size: Most ids of the tokenizer.
        shard_size: Studies in one shard.
        progress: Whether to show a progress bar.

    Returns:
        The corpus folder.

    Raises:
        ValueError: If an argument is out of range, or ``out`` holds another corpus.
        OSError: If the disk has no room.
    """
    corpus = SyntheticCorpus(seed=seed, image_size=image_size, wording=wording)
    counts = {"train": train, "val": val, "test": test}
    with _bar(sum(counts.values()), progress) as bar:
        index = write_corpus(
            out,
            {split: corpus.studies(split, count) for split, count in counts.items()},
            counts=counts,
            corpus=corpus.name,
            options={**corpus.options, "vocab_size": vocab_size},
            labels=corpus.labels,
            shard_size=shard_size,
            bytes_per_study=image_size**2 + 8_000,
            on_study=_advance(bar),
        )
    _ensure_tokenizer(Path(out), index, vocab_size)
    return Path(out)


def make_nih(
    source: Path | str,
    out: Path | str,
    *,
    seed: int = 0,
    wording: Wording = "peaked",
    vocab_size: int = 640,
    shard_size: int = 500,
    progress: bool = True,
) -> Path:
    """Make a corpus in ``out`` of the NIH images in ``source``, or find that it is there already.

    Args:
        source: Folder with ``manifest.jsonl`` and ``images/``.
        out: Corpus folder.
        seed: Seed of the patient-wise split and of the wordings.
        wording: ``peaked`` or ``even`` shares of the wordings.
        vocab_size: Most ids of the tokenizer.
        shard_size: Studies in one shard.
        progress: Whether to show a progress bar.

    Returns:
        The corpus folder.

    Raises:
        FileNotFoundError: If the source is absent.
        ValueError: If the source is damaged, or ``out`` holds another corpus.
        OSError: If the disk has no room.
    """
    corpus = NIHCorpus(source, seed=seed, wording=wording)
    with _bar(sum(corpus.counts.values()), progress) as bar:
        index = write_corpus(
            out,
            {split: corpus.studies(split) for split in corpus.counts},
            counts=corpus.counts,
            corpus=corpus.name,
            options={**corpus.options, "vocab_size": vocab_size},
            labels=corpus.labels,
            shard_size=shard_size,
            bytes_per_study=16_000,
            on_study=_advance(bar),
        )
    _ensure_tokenizer(Path(out), index, vocab_size)
    return Path(out)


def _bar(total: int, progress: bool) -> tqdm[Never]:
    return tqdm(total=total, unit="study", desc="corpus", disable=None if progress else True, leave=False)


def _advance(bar: tqdm[Never]) -> Callable[[Study], None]:
    def advance(study: Study) -> None:
        bar.update()

    return advance


def _ensure_tokenizer(out: Path, index: CorpusIndex, vocab_size: int) -> None:
    """Train the tokenizer on the reports in the shards, unless it was done before, and put its files on the index."""
    target = out / "tokenizer"
    if not (target / "tokenizer_config.json").is_file():
        with atomic_folder(target) as folder:
            # the instruction counts once for every study, as it stands before every report
            train_tokenizer(_texts(out, index), folder, vocab_size=vocab_size)
    attach_folder(out, target.name, index)


def _texts(out: Path, index: CorpusIndex) -> list[str]:
    texts: list[str] = []
    for shard in index.shards("train"):
        for _, raw in read_samples(out, shard, range(shard.samples)):
            study = decode_study(raw)
            reports = [study.normalized] if study.raw is None else [study.normalized, study.raw]
            texts += [FORMS["en"].instruction, *(format_response(report) for report in reports)]
        if len(texts) >= 3 * TOKENIZER_STUDIES:
            break
    return texts


def summary(out: Path) -> str:
    """Return one line with the corpus, its fingerprint and its numbers of studies."""
    index = CorpusIndex.load(out)
    counts = ", ".join(f"{index.count(split)} {split}" for split in index.splits)
    shards = sum(len(shards) for shards in index.splits.values())
    return f"{index.corpus} corpus {index.fingerprint} in {out}: {counts} studies in {shards} shards"
