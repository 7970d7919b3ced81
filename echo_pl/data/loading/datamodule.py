"""The data room's door: a LightningDataModule that streams one corpus, or several mixed, as batches.

Wires corpora, tokenizer, processor, order, stream and loader, and knows which rank it is on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from echo_pl.data.loading.batch_source import BatchSource, TrainingPasses
from echo_pl.data.loading.corpus_set import open_corpora
from echo_pl.data.loading.corpus_tokenizer import corpus_tokenizer
from echo_pl.data.loading.loader import FixedLoader, ResumableLoader
from echo_pl.data.loading.processor import ProcessorConfig, ReportProcessor, Sample, Template
from echo_pl.data.loading.stream import BatchStream, OnBad
from echo_pl.data.loading.tokenizer import ReportTokenizer, vocabulary_fingerprint, word_starts
from echo_pl.data.loading.training_order import TrainingOrder
from echo_pl.data.store.corpus import Corpus
from echo_pl.data.store.corpus_folder import LocalCorpus
from echo_pl.data.store.corpus_index import CorpusIndex
from echo_pl.data.store.study import Version
from echo_pl.reports.report import ReportJudge
from echo_pl.structs import Batch, SpecialTokens

EvalSplit = Literal["val", "test"]


class ReportDataModule(L.LightningDataModule):
    """Chest X-ray studies as batches.

    Args:
        root: Corpus folder, as made by ``echo-pl corpus make``, or its URL; None with ``corpora``.
        corpora: A mixture: name to ``root``, ``weight`` and ``stored_features``
            (:class:`echo_pl.data.loading.corpus_set.CorpusShare`).
        cache_dir: Folder on a local disk where what comes from URLs is kept; all processes of a node may share it.
        cache_bytes: Most bytes there; every reading process needs room for a shard of each corpus, and for the next.
        tokenizer_path: Folder of a saved tokenizer; None: the one made with the corpus, ``root/tokenizer``, which all corpora of
            a mixture must then share.
        batch_size: Studies of one rank in one training step.
        eval_batch_size: Studies of one rank in one validation or test step; None: ``batch_size``.
        seed: Seed of the training order.
        shuffle_buffer: How many places a study may move from its place in the shuffled shards.
        length_window: Global batches whose studies are sorted by the length of their (normalized) reports and divided again,
            so that batches are padded less; 0: batches as they come.
        num_workers: Processes that read, decode, tokenize and collate, per rank; the batches do not depend on it. 0: all that
            happens in the training process.
        prefetch_batches: Batches that each of these processes has ready or at work.
        version: Which report is the response, ``normalized`` or ``raw``.
        language: Language of the instruction and of the response's headings, ``en`` or ``zh``.
        template: Prompt layout, ``plain`` or ``chat``.
        patch_size: Side of a vision patch in pixels.
        merge_size: Patches along one side merged into one vision token.
        temporal_patch_size: Times a still image is repeated in its patch.
        min_pixels: Smaller images are enlarged to this many pixels.
        max_pixels: Larger images are reduced to this many pixels.
        max_response_tokens: Longest response, eos included.
        on_bad_sample: ``error`` or ``skip``, for a sample that cannot be decoded.
        on_long_response: ``error`` or ``skip``, for a response longer than ``max_response_tokens``.
        stored_features: Folder of stored vision features (``echo-pl corpus features``), which are read
            instead of images, for stages whose vision tower is frozen; None: the images.
        cache_samples: Training samples kept in memory once decoded (a 64 x 64 one takes 0.1 MB); only with num_workers=0.
        limit_train: Train on the first so many studies (of each corpus) only.
        limit_val: Validate on the first so many studies (of each corpus) only.
        limit_test: Test on the first so many studies (of each corpus) only.
        pin_memory: Whether batches are put in page-locked memory (for a GPU).
        rank: Rank of this process; None: that of the trainer or of torch.distributed.
        world_size: Number of processes; None: the same.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        corpora: Mapping[str, Mapping[str, Any]] | None = None,
        cache_dir: str | Path | None = None,
        cache_bytes: int = 50_000_000_000,
        tokenizer_path: str | Path | None = None,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        seed: int = 0,
        shuffle_buffer: int = 2000,
        length_window: int = 0,
        num_workers: int = 0,
        prefetch_batches: int = 2,
        version: Version = "normalized",
        language: str = "en",
        template: Template = "plain",
        patch_size: int = 8,
        merge_size: int = 2,
        temporal_patch_size: int = 2,
        min_pixels: int = 64 * 64,
        max_pixels: int = 64 * 64,
        max_response_tokens: int = 128,
        on_bad_sample: OnBad = "error",
        on_long_response: OnBad = "error",
        stored_features: str | Path | None = None,
        cache_samples: int = 0,
        limit_train: int | None = None,
        limit_val: int | None = None,
        limit_test: int | None = None,
        pin_memory: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.processor_config = ProcessorConfig(
            version=version,
            language=language,
            template=template,
            patch_size=patch_size,
            merge_size=merge_size,
            temporal_patch_size=temporal_patch_size,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            max_response_tokens=max_response_tokens,
        )
        self.corpora = open_corpora(
            root,
            corpora,
            stored_features=stored_features,
            processing=self.image_processing,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
        )
        self._tokenizer_path = None if tokenizer_path is None else Path(tokenizer_path)
        self._seed = seed
        self._shuffle_buffer = shuffle_buffer
        self._length_window = length_window
        self._num_workers = num_workers
        self._prefetch_batches = prefetch_batches
        self._on_bad_sample = on_bad_sample
        self._on_long_response = on_long_response
        self._cache_samples = cache_samples
        self._cache: dict[str, Sample] = {}
        self._limits = {"train": limit_train, "val": limit_val, "test": limit_test}
        self._pin_memory = pin_memory
        self._rank = rank
        self._world_size = world_size
        self._check()

    def _check(self) -> None:
        at_least = {
            "batch_size": (self.batch_size, 1),
            "eval_batch_size": (self.eval_batch_size, 1),
            "seed": (self._seed, 0),
            "shuffle_buffer": (self._shuffle_buffer, 0),
            "length_window": (self._length_window, 0),
            "num_workers": (self._num_workers, 0),
            "prefetch_batches": (self._prefetch_batches, 1),
            "cache_samples": (self._cache_samples, 0),
            **{f"limit_{split}": (limit, 1) for split, limit in self._limits.items() if limit is not None},
        }
        for name, (value, least) in at_least.items():
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self._cache_samples and self._num_workers:
            raise ValueError(
                f"cache_samples={self._cache_samples} needs num_workers=0, got {self._num_workers}: "
                "a worker gets other studies in every epoch, and knows nothing of those of another"
            )
        for name, choice in (("on_bad_sample", self._on_bad_sample), ("on_long_response", self._on_long_response)):
            if choice not in ("error", "skip"):
                raise ValueError(f"{name} must be 'error' or 'skip', got {choice!r}")
        if (self._rank is None) != (self._world_size is None):
            raise ValueError(f"give both rank and world_size or neither, got {self._rank} and {self._world_size}")

    @property
    def corpus(self) -> Corpus:
        """The only corpus.

        Raises:
            ValueError: If there are several.
        """
        if len(self.corpora.corpora) > 1:
            raise ValueError(f"this is done for one corpus at a time (data.root), not for a mixture of {len(self.corpora.corpora)}")
        return self.corpora.corpora[0]

    @property
    def index(self) -> CorpusIndex:
        """Index of the only corpus."""
        return self.corpus.index

    @property
    def root(self) -> Path:
        """The folder of the only corpus.

        Raises:
            ValueError: If there are several, or it is remote.
        """
        if not isinstance(self.corpus.folder, LocalCorpus):
            raise ValueError(f"{self.corpus} is no local folder")
        return self.corpus.folder.path

    @cached_property
    def _tokenizer_and_special(self) -> tuple[ReportTokenizer, SpecialTokens]:
        return corpus_tokenizer(self.corpora, self._tokenizer_path)

    @property
    def tokenizer(self) -> ReportTokenizer:
        """The tokenizer, with a mask token."""
        return self._tokenizer_and_special[0]

    @property
    def special(self) -> SpecialTokens:
        """The ids that samplers and mathematics have to know."""
        return self._tokenizer_and_special[1]

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer, which the model's embeddings must at least have."""
        return len(self.tokenizer)

    @cached_property
    def processor(self) -> ReportProcessor:
        """Processor from a study to tensors."""
        return ReportProcessor(self.tokenizer, self.special, self.processor_config)

    @property
    def labels(self) -> tuple[str, ...]:
        """Finding labels of the corpora, the columns of ``Batch.labels_BF``."""
        return self.corpora.labels

    @cached_property
    def judge(self) -> ReportJudge | None:
        """Judge of the reports of all corpora, or None."""
        return self.corpora.judge(self.processor_config.version)

    @cached_property
    def vocabulary_fingerprint(self) -> str:
        """Hash of what every token id means."""
        return vocabulary_fingerprint(self.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the corpora's bytes, their mixture, the vocabulary and how studies become tensors."""
        parts = f"{self.corpora.fingerprint}\n{self.vocabulary_fingerprint}\n{sorted(asdict(self.processor_config).items())}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    @property
    def image_processing(self) -> dict[str, int]:
        """Settings that determine the patches of an image."""
        c = self.processor_config
        return {name: getattr(c, name) for name in ("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels")}

    @property
    def vision_fingerprint(self) -> str | None:
        """Fingerprint of the vision tower whose stored output the batches hold; None if they hold pixels."""
        return self.corpora.vision_fingerprint

    @property
    def skips_bad_samples(self) -> bool:
        """True if a study that cannot be read is skipped, False if it is an error."""
        return self._on_bad_sample == "skip"

    @property
    def stored_precision(self) -> str | None:
        """Precision in which the tower computed its stored output; None if batches hold pixels."""
        return self.corpora.stored_precision

    def setup(self, stage: str | None = None) -> None:
        """Read indices, tokenizer and indices of features, so that missing files are reported before training starts."""
        _ = self.labels, self.special, self.vision_fingerprint, self.stored_precision
        for corpus in self.corpora.corpora:
            unknown = [shard.name for shard in corpus.index.splits.get("train", ()) if not shard.characters]
            if self._length_window and unknown:
                raise ValueError(
                    f"the index of {corpus} does not say how long the reports of {unknown[0]} are: "
                    "run `echo-pl corpus make` again, which "
                    "adds that to a corpus from before, or set stage.length_window=0"
                )

    def train_dataloader(self) -> ResumableLoader:
        """Return the training stream: shuffled by (seed, epoch), endless, exactly resumable.

        Raises:
            ValueError: If the training split does not fill one batch of every rank.
        """
        order = self._training_order(*self._place())
        cache = self._cache if self._cache_samples else None
        return ResumableLoader(
            TrainingPasses(source=self._source, order=order, cache=cache, cache_size=self._cache_samples),
            batches=order.batches_of_an_epoch(),
            order=str(order),
            num_workers=self._num_workers,
            pin_memory=self._pin_memory,
            prefetch_batches=self._prefetch_batches,
        )

    def check_batches(self, world_size: int) -> None:
        """Check that the training split fills one batch of every rank and that every weight gives a visit.

        Raises:
            ValueError: naming both numbers.
        """
        self._training_order(0, world_size).batches_of_an_epoch()

    def val_dataloader(self) -> FixedLoader:
        """Return the validation split in its order, with references."""
        return self._eval_loader("val")

    def test_dataloader(self) -> FixedLoader:
        """Return the test split in its order, with references."""
        return self._eval_loader("test")

    @property
    def training_studies(self) -> int:
        """Number of studies that training visits."""
        return len(self._source.fixed_order("train", self._limits["train"]).places)

    def train_batches_once(self, batch_size: int, numbers: Sequence[int] | None = None) -> FixedLoader:
        """Return every study that training may visit, once, in the order of the shards; the last batch may be smaller.

        Args:
            batch_size: Studies of a batch.
            numbers: Which of these batches, in rising order; None: all. The content of a batch does not depend on this.
        """
        return self._fixed_loader(self._source.training_once(self._limits["train"], batch_size=batch_size, numbers=numbers))

    def held_out_batches(self, split: EvalSplit, batch_size: int, limit: int) -> list[Batch]:
        """Return the first ``limit`` studies of a split as batches, of a mixture one of each corpus in turns; all on every rank."""
        return self._source.held_out(split, batch_size, limit)

    def images(self, split: str, keys: Iterable[str]) -> dict[str, Image.Image]:
        """Return the first image of each of these studies, at its original size.

        Raises:
            ValueError: If the split has no such study.
        """
        return self.corpora.images(split, keys)

    def detokenize(self, tokens: Tensor) -> str:
        """Text of response tokens, control tokens left out."""
        return self.processor.detokenize(tokens)

    def word_starts(self) -> list[int]:
        """Return the ids that begin a word after another: a space and a letter. None in Chinese, which has no spaces."""
        return word_starts(self.tokenizer)

    @cached_property
    def _source(self) -> BatchSource:
        return BatchSource(
            corpora=self.corpora,
            processor=self.processor,
            special=self.special,
            on_bad_sample=self._on_bad_sample,
            on_long_response=self._on_long_response,
        )

    def _place(self) -> tuple[int, int]:
        """Rank and world size."""
        if self._rank is not None and self._world_size is not None:
            return self._rank, self._world_size
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1

    def _training_order(self, rank: int, world_size: int) -> TrainingOrder:
        return TrainingOrder(
            corpora=self.corpora.training_shards(),
            names=tuple(map(str, self.corpora.corpora)),
            weights=self.corpora.weights,
            seed=self._seed,
            shuffle_buffer=self._shuffle_buffer,
            length_window=self._length_window,
            limit=self._limits["train"],
            batch_size=self.batch_size,
            rank=rank,
            world_size=world_size,
        )

    def _eval_loader(self, split: EvalSplit) -> FixedLoader:
        rank, world_size = self._place()
        return self._fixed_loader(
            self._source.fixed(split, self._limits[split], batch_size=self.eval_batch_size, rank=rank, world_size=world_size)
        )

    def _fixed_loader(self, stream: BatchStream) -> FixedLoader:
        return FixedLoader(
            stream, num_workers=self._num_workers, pin_memory=self._pin_memory, prefetch_batches=self._prefetch_batches
        )
