"""The data room's door: a LightningDataModule that streams a corpus folder as batches.

Wires index, tokenizer, processor, order, stream and loader, and knows which rank it is on. Knows nothing of diffusion
or models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Literal

import lightning as L
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from echo_pl.data.collator import ReportCollator
from echo_pl.data.corpora import make_judge
from echo_pl.data.corpus_index import CorpusIndex, check_local
from echo_pl.data.feature_store import FeatureReader
from echo_pl.data.judge import ReportJudge
from echo_pl.data.loader import FixedLoader, ResumableLoader
from echo_pl.data.order import EpochOrder, Places, eval_batches, fixed_order
from echo_pl.data.processor import ProcessorConfig, ReportProcessor, Sample, Template
from echo_pl.data.shard_reader import first_images
from echo_pl.data.stream import BatchStream, OnBad
from echo_pl.data.study import Version
from echo_pl.data.tokenizer import ReportTokenizer, load_tokenizer, vocabulary_fingerprint
from echo_pl.data.training_order import TrainingOrder
from echo_pl.structs import Batch, SpecialTokens

EvalSplit = Literal["val", "test"]


class ReportDataModule(L.LightningDataModule):
    """Chest X-ray studies as batches.

    Args:
        root: Corpus folder, as made by ``python -m echo_pl.tools.make_corpus``.
        tokenizer_path: Folder of a saved tokenizer; None: the one made with the corpus, ``root/tokenizer``.
        batch_size: Studies of one rank in one training step.
        eval_batch_size: Studies of one rank in one validation or test step; None: ``batch_size``.
        seed: Seed of the training order.
        shuffle_buffer: How many places a study may move from its place in the shuffled shards.
        length_window: Global batches whose studies are sorted by the length of their (normalized) reports and dealt out anew,
            so that batches are padded less; 0: batches as they come.
        num_workers: Processes that read and decode, per rank; the batches do not depend on it.
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
        stored_features: Folder of stored vision features (``python -m echo_pl.tools.store_features``), which are read in the
            place of images, for stages whose vision tower is frozen; None: the images.
        cache_samples: Training samples kept in memory once decoded (a 64 x 64 one takes 0.1 MB); only with num_workers=0.
        limit_train: Train on the first so many studies only.
        limit_val: Validate on the first so many studies only.
        limit_test: Test on the first so many studies only.
        pin_memory: Whether batches are put in page-locked memory (for a GPU).
        rank: This process's number; None: asked of the trainer or of torch.distributed.
        world_size: Number of processes; None: asked likewise.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        tokenizer_path: str | Path | None = None,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        seed: int = 0,
        shuffle_buffer: int = 2000,
        length_window: int = 0,
        num_workers: int = 0,
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
        self.root = check_local(root)
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
        self._tokenizer_path = self.root / "tokenizer" if tokenizer_path is None else Path(tokenizer_path)
        self._seed = seed
        self._shuffle_buffer = shuffle_buffer
        self._length_window = length_window
        self._num_workers = num_workers
        self._on_bad_sample = on_bad_sample
        self._on_long_response = on_long_response
        self._features_folder = None if stored_features is None else check_local(stored_features)
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
            "cache_samples": (self._cache_samples, 0),
            **{f"limit_{split}": (limit, 1) for split, limit in self._limits.items() if limit is not None},
        }
        for name, (value, least) in at_least.items():
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self._cache_samples and self._num_workers:
            raise ValueError(
                f"cache_samples={self._cache_samples} needs num_workers=0, got {self._num_workers}: "
                "workers end with their epoch, and their memory with them"
            )
        for name, choice in (("on_bad_sample", self._on_bad_sample), ("on_long_response", self._on_long_response)):
            if choice not in ("error", "skip"):
                raise ValueError(f"{name} must be 'error' or 'skip', got {choice!r}")
        if (self._rank is None) != (self._world_size is None):
            raise ValueError(f"give both rank and world_size or neither, got {self._rank} and {self._world_size}")

    @cached_property
    def index(self) -> CorpusIndex:
        """What the corpus folder holds."""
        return CorpusIndex.load(self.root)

    @cached_property
    def _tokenizer_and_special(self) -> tuple[ReportTokenizer, SpecialTokens]:
        return load_tokenizer(self._tokenizer_path)

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
        """From a study to tensors."""
        return ReportProcessor(self.tokenizer, self.special, self.processor_config)

    @property
    def labels(self) -> tuple[str, ...]:
        """Finding labels of the corpus, the columns of ``Batch.labels_BF``."""
        return self.index.labels

    @cached_property
    def judge(self) -> ReportJudge | None:
        """Who can read the corpus's reports back, where there is one."""
        return make_judge(self.index.corpus, self.processor_config.version)

    @cached_property
    def vocabulary_fingerprint(self) -> str:
        """Hash of what every token id means."""
        return vocabulary_fingerprint(self.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the corpus's bytes, the vocabulary and how studies become tensors."""
        parts = f"{self.index.fingerprint}\n{self.vocabulary_fingerprint}\n{sorted(asdict(self.processor_config).items())}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    @property
    def image_processing(self) -> dict[str, int]:
        """What decides how an image becomes patches."""
        c = self.processor_config
        return {name: getattr(c, name) for name in ("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels")}

    @cached_property
    def _features(self) -> FeatureReader | None:
        if self._features_folder is None:
            return None
        reader = FeatureReader(self._features_folder)
        reader.index.check(reader.folder, self.index.fingerprint, self.image_processing)
        return reader

    @property
    def vision_fingerprint(self) -> str | None:
        """Of the vision tower whose stored output the batches carry; None: they carry pixels."""
        return None if self._features is None else self._features.index.vision_fingerprint

    @property
    def skips_bad_samples(self) -> bool:
        """Whether a study that cannot be read is left out, and not an error."""
        return self._on_bad_sample == "skip"

    @property
    def stored_precision(self) -> str | None:
        """In which the tower computed its stored output; None: batches carry pixels."""
        return None if self._features is None else self._features.index.precision

    def setup(self, stage: str | None = None) -> None:
        """Read index, tokenizer and index of features, so that what is missing is said before training starts."""
        _ = self.index, self.special, self._features
        unknown = [shard.name for shard in self.index.splits.get("train", ()) if not shard.characters]
        if self._length_window and unknown:
            raise ValueError(
                f"the index of {self.root} does not say how long the reports of {unknown[0]} are: run make_corpus again, which "
                "adds that to a corpus from before, or set stage.length_window=0"
            )

    def train_dataloader(self) -> ResumableLoader:
        """Return the training stream: shuffled by (seed, epoch), endless, exactly resumable.

        Raises:
            ValueError: If the training split does not fill one batch of every rank.
        """
        order = self._training_order(*self._place())
        return ResumableLoader(
            self._train_stream,
            batches=order.batches_of_an_epoch(),
            order=str(order),
            num_workers=self._num_workers,
            pin_memory=self._pin_memory,
        )

    def refuse_too_few(self, world_size: int) -> None:
        """Refuse a training split that does not fill one batch of every rank.

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

    def train_batches_once(self, batch_size: int) -> FixedLoader:
        """Return every study that training visits, once, in the order of the shards; the last batch may be smaller."""
        order = fixed_order(self._counts("train"), self._limits["train"])
        batches = eval_batches(order.places, batch_size=batch_size, rank=0, world_size=1)
        stream = self._stream("train", order, batches, references=False)
        return FixedLoader(stream, num_workers=self._num_workers, pin_memory=self._pin_memory)

    def held_out_batches(self, split: EvalSplit, batch_size: int, limit: int) -> list[Batch]:
        """Return the first ``limit`` studies of a split as batches, all of them on every rank."""
        order = fixed_order(self._counts(split), limit)
        batches = eval_batches(order.places, batch_size=batch_size, rank=0, world_size=1)
        return list(self._stream(split, order, batches, references=True))

    def images(self, split: str, keys: Iterable[str]) -> dict[str, Image.Image]:
        """Return the first image of each of these studies, at its original size.

        Raises:
            ValueError: If the split has no such study.
        """
        return first_images(self.root, self.index.shards(split), keys)

    def detokenize(self, tokens: Tensor) -> str:
        """Text of response tokens, control tokens left out."""
        return self.processor.detokenize(tokens)

    def _counts(self, split: str) -> list[int]:
        return [shard.samples for shard in self.index.shards(split)]

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
            shards=self.index.shards("train"),
            seed=self._seed,
            shuffle_buffer=self._shuffle_buffer,
            length_window=self._length_window,
            limit=self._limits["train"],
            batch_size=self.batch_size,
            rank=rank,
            world_size=world_size,
        )

    def _train_stream(self, epoch: int, done: int) -> BatchStream:
        order, batches = self._training_order(*self._place()).epoch(epoch)
        cache = self._cache if self._cache_samples else None
        return self._stream("train", order, batches[done:], references=False, cache=cache)

    def _eval_loader(self, split: EvalSplit) -> FixedLoader:
        order = fixed_order(self._counts(split), self._limits[split])
        rank, world_size = self._place()
        batches = eval_batches(order.places, batch_size=self.eval_batch_size, rank=rank, world_size=world_size)
        stream = self._stream(split, order, batches, references=True)
        return FixedLoader(stream, num_workers=self._num_workers, pin_memory=self._pin_memory)

    def _stream(
        self,
        split: str,
        order: EpochOrder,
        batches: list[Places],
        *,
        references: bool,
        cache: dict[str, Sample] | None = None,
    ) -> BatchStream:
        return BatchStream(
            folder=self.root,
            split=split,
            shards=self.index.shards(split),
            order=order,
            batches=batches,
            process=self.processor,
            collate=ReportCollator(self.special, self.labels, references=references, vision_fingerprint=self.vision_fingerprint),
            features=self._features,
            on_bad_sample=self._on_bad_sample,
            on_long_response=self._on_long_response,
            cache=cache,
            cache_size=self._cache_samples,
        )
