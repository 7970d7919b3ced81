"""Batches of the splits of one corpus or several: what is read, in which order, and what becomes of it, bound together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echo_pl.data.loading.collator import ReportCollator
from echo_pl.data.loading.corpus_set import CorpusSet
from echo_pl.data.loading.order import EpochOrder, Indices, eval_batches, fixed_order, in_turns
from echo_pl.data.loading.processor import ReportProcessor, Sample
from echo_pl.data.loading.stream import BatchStream, OnBad
from echo_pl.data.loading.training_order import TrainingOrder
from echo_pl.structs import Batch, SpecialTokens


@dataclass(frozen=True, kw_only=True)
class BatchSource:
    """Makes streams of batches."""

    corpora: CorpusSet
    processor: ReportProcessor
    special: SpecialTokens
    on_bad_sample: OnBad
    on_long_response: OnBad

    def fixed_order(self, split: str, limit: int | None) -> EpochOrder:
        """The first ``limit`` studies of each corpus that has the split, in the order of its shards.

        Raises:
            ValueError: If no corpus has such a split.
        """
        shards = self.corpora.shards(split)
        streams = tuple(i for i, shard in enumerate(shards) if i == 0 or shard.corpus is not shards[i - 1].corpus)
        return fixed_order([shard.shard.samples for shard in shards], limit, streams=streams)

    def fixed(self, split: str, limit: int | None, *, batch_size: int, rank: int, world_size: int) -> BatchStream:
        """A held-out split in its order, with references.

        Raises:
            ValueError: If there is no such split, or it has fewer studies than there are ranks.
        """
        order = self.fixed_order(split, limit)
        batches = eval_batches(order.places, batch_size=batch_size, rank=rank, world_size=world_size)
        return self.stream(split, order, batches, references=True)

    def training_once(self, limit: int | None, *, batch_size: int, numbers: Sequence[int] | None) -> BatchStream:
        """The training split in the order of its shards; ``numbers`` chooses batches, None: all."""
        order = self.fixed_order("train", limit)
        batches = eval_batches(order.places, batch_size=batch_size, rank=0, world_size=1)
        chosen = batches if numbers is None else [batches[number] for number in numbers]
        return self.stream("train", order, chosen, references=False)

    def held_out(self, split: str, batch_size: int, limit: int) -> list[Batch]:
        """The first ``limit`` studies of a split, of several corpora one of each in turns."""
        order = self.fixed_order(split, None)
        batches = eval_batches(in_turns(order)[:limit], batch_size=batch_size, rank=0, world_size=1)
        return list(self.stream(split, order, batches, references=True))

    def stream(
        self,
        split: str,
        order: EpochOrder,
        batches: Sequence[Indices],
        *,
        references: bool,
        cache: dict[str, Sample] | None = None,
        cache_size: int = 0,
    ) -> BatchStream:
        """One pass over some batches; see :class:`echo_pl.data.loading.stream.BatchStream`."""
        return BatchStream(
            shards=self.corpora.shards(split),
            order=order,
            batches=batches,
            process=self.processor,
            collate=ReportCollator(
                self.special, self.corpora.labels, references=references, vision_fingerprint=self.corpora.vision_fingerprint
            ),
            on_bad_sample=self.on_bad_sample,
            on_long_response=self.on_long_response,
            cache=cache,
            cache_size=cache_size,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingPasses:
    """Function from (epoch, number of batches to skip) to the stream of the remaining batches."""

    source: BatchSource
    order: TrainingOrder
    cache: dict[str, Sample] | None
    """Finished samples, kept from pass to pass; None: every pass decodes again."""
    cache_size: int

    def __call__(self, epoch: int, done: int) -> BatchStream:
        """Make the stream."""
        order, batches = self.order.epoch(epoch)
        return self.source.stream("train", order, batches[done:], references=False, cache=self.cache, cache_size=self.cache_size)
