"""Corpus folders of drawn or labelled images: shards, index, and a tokenizer trained on the reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

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
    """Make the synthetic corpus, or do nothing if it exists.

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
        progress: Show a progress bar.

    Returns:
        The corpus folder.

    Raises:
        ValueError: If an argument is out of range, or ``out`` contains another corpus.
        OSError: If the disk is full.
    """
    corpus = SyntheticCorpus(seed=seed, image_size=image_size, wording=wording)
    counts = {"train": train, "val": val, "test": test}
    splits = {split: corpus.studies(split, count) for split, count in counts.items()}
    return _write(Path(out), corpus, splits, counts, image_size**2 + 8_000, vocab_size, shard_size, progress)


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
    """Make a corpus of the NIH images in ``source``, or do nothing if it exists.

    Args:
        source: Folder with ``manifest.jsonl`` and ``images/``.
        out: Corpus folder.
        seed: Seed of the patient-wise split and of the wordings.
        wording: As in :func:`make_synthetic`, as are the other arguments and errors.
        vocab_size: Most ids of the tokenizer.
        shard_size: Studies in one shard.
        progress: Show a progress bar.

    Raises:
        FileNotFoundError: If the source is missing.
    """
    corpus = NIHCorpus(source, seed=seed, wording=wording)
    splits = {split: corpus.studies(split) for split in corpus.counts}
    return _write(Path(out), corpus, splits, corpus.counts, 16_000, vocab_size, shard_size, progress)


def _write(
    out: Path,
    corpus: SyntheticCorpus | NIHCorpus,
    splits: Mapping[str, Iterable[Study]],
    counts: Mapping[str, int],
    bytes_per_study: int,
    vocab_size: int,
    shard_size: int,
    progress: bool,
) -> Path:
    with tqdm(total=sum(counts.values()), unit="study", desc="corpus", disable=None if progress else True, leave=False) as bar:

        def advance(study: Study) -> None:
            bar.update()

        index = write_corpus(
            out,
            splits,
            counts=counts,
            corpus=corpus.name,
            options={**corpus.options, "vocab_size": vocab_size},
            labels=corpus.labels,
            shard_size=shard_size,
            bytes_per_study=bytes_per_study,
            on_study=advance,
        )
    target = out / "tokenizer"
    if not (target / "tokenizer_config.json").is_file():
        with atomic_folder(target) as folder:
            train_tokenizer(_texts(out, index), folder, vocab_size=vocab_size)
    attach_folder(out, target.name, index)
    return out


def _texts(out: Path, index: CorpusIndex) -> list[str]:
    """Reports of training studies, each study with its instruction, which training shows as often."""
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
