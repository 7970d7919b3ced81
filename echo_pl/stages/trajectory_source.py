"""Phase 1 of stage 3: trajectories of a batch, from a store or decoded now, and counts of dropped ones.

Implements docs/explain/method.md, "Stage 3: Direct Conditional Distillation". Used by the stage by composition.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from echo_pl.backbone.vlm import VLM, weights_fingerprint
from echo_pl.diffusion.noise import sample_generator
from echo_pl.sampling.collect import store_identity, usable_trajectories
from echo_pl.sampling.config import DecodeConfig, check_weight
from echo_pl.sampling.decoder import StageDecoder
from echo_pl.sampling.forced_prefix import ForcedPrefix, prepend_prefix, sample_prefix_lengths
from echo_pl.sampling.tilted import Tilt
from echo_pl.sampling.trajectory import TrajectoryRecorder
from echo_pl.sampling.trajectory_store import CollectionCounts, TrajectoryStore
from echo_pl.stages.parallel import is_distributed
from echo_pl.structs import Batch, Trajectory

log = logging.getLogger(__name__)
Found = list[Trajectory | None]
"""A trajectory per sample; None where there is no usable one."""


class TrajectorySource:
    """Stored trajectories, or trajectories that the teacher decodes now."""

    def __init__(
        self,
        decoder: StageDecoder,
        decode: DecodeConfig,
        *,
        distributions: bool,
        whole: bool,
        folder: str | None,
        student_prefix: float,
        tilt: float,
        seed: int,
    ) -> None:
        """Check the options; nothing is read yet.

        Args:
            decoder: makes the samplers.
            decode: the teacher's decode.
            distributions: trajectories must carry distributions.
            whole: the objective needs whole distributions; the likeliest tokens alone change its loss.
            folder: stored trajectories; None: decode on the fly.
            student_prefix: share of the studies whose first blocks the student writes.
            tilt: weight of the student that the teacher is tilted towards; stored trajectories need the same weight.
            seed: seed of the prefix lengths.

        Raises:
            ValueError: a share or a weight outside its range; a share together with stored trajectories.
        """
        if not 0.0 <= student_prefix <= 1.0:
            raise ValueError(f"student_prefix must be in [0, 1], got {student_prefix}")
        if student_prefix and folder is not None:
            raise ValueError("student_prefix follows the student as it learns: it decodes on the fly, leave trajectories unset")
        self.distributions, self.folder, self.student_prefix = distributions, folder, student_prefix
        check_weight(tilt, "a tilt")
        self.decoder, self.decode, self.tilt, self.seed = decoder, decode, tilt, seed
        self.dropped = {"loops": 0, "endless": 0}
        """Trajectories dropped so far on all ranks, when decoded on the fly."""
        self._whole = whole
        self._store: TrajectoryStore | None = None

    def open(self, teacher: VLM, data: str) -> None:
        """Read the store, if there is one; warn if it keeps less of the distributions than the objective needs.

        Args:
            teacher: the model that must have decoded it.
            data: fingerprint of the data that it must belong to.

        Raises:
            FileNotFoundError: the folder has no trajectories.
            ValueError: they are damaged, or belong to another teacher, decode or corpus.
        """
        if self.folder is None:
            return
        store = TrajectoryStore(self.folder)
        store.check(store_identity(self.decode, weights_fingerprint(teacher), data, self.distributions, tilt=self.tilt))
        kept, vocabulary = store.identity.kept_tokens, len(teacher.network.lm_head.weight)
        if self._whole and 0 < kept < vocabulary:
            log.warning(
                "the trajectories in %s keep the %s likeliest of %s tokens of every distribution, and reverse KL loses several "
                "per cent of itself on them: collect whole ones (echo-pl trajectories collect --keep 0; in a sweep "
                "sweep.kept_tokens=0), or leave stage.module.trajectories unset to decode on the fly",
                store.folder, kept, vocabulary,
            )  # fmt: skip
        self._store = store

    def collect(self, batch: Batch, teacher: VLM, student: VLM, epoch: int, tail_B: Tensor) -> Found:
        """The trajectories of a batch; None where there is no usable one.

        Args:
            batch: contexts.
            teacher: the frozen model.
            student: the model in training.
            epoch: part of the seed of the prefix lengths.
            tail_B: context tokens in each sample's first block.

        Raises:
            ValueError: a sample is not in the store.
        """
        if self._store is not None:
            return [self._store.get(key) for key in batch.keys]
        if self.student_prefix:
            found, counts = self._after_student(batch, teacher, student, epoch, tail_B)
        else:
            found, counts = self._decode(batch, teacher, student, self.distributions)
        self._count(counts, tail_B.device)
        return found

    def decode_teacher(self, batch: Batch, teacher: VLM) -> Found:
        """The teacher's own trajectories of a batch, decoded now and without distributions; nothing is counted."""
        return self._decode(batch, teacher, student=None, distributions=False)[0]

    def _decode(
        self, batch: Batch, teacher: VLM, student: VLM | None, distributions: bool, prefix: ForcedPrefix | None = None
    ) -> tuple[Found, CollectionCounts]:
        """The teacher's trajectories of a batch; with a student, tilted towards it."""
        tilt = None if student is None or not self.tilt else Tilt(student=student, weight=self.tilt)
        with _as_collected(batch):
            return usable_trajectories(self.decoder.multi_step(teacher, tilt), batch, distributions, prefix=prefix)

    def _after_student(
        self, batch: Batch, teacher: VLM, student: VLM, epoch: int, tail_B: Tensor
    ) -> tuple[Found, CollectionCounts]:
        """For a share of the studies, the student writes the first blocks in one step, and the teacher the rest.

        The student's tokens have commit step 0 in the trajectories: they are context, and not trained on.
        """
        L, special, tails = self.decode.block_size, self.decoder.special, tail_B.cpu()
        recorder = TrajectoryRecorder()
        with _as_collected(batch):
            self.decoder.multi_step(student, denoising_steps=1, kv_cache="fused", gate=0.0).generate(batch, recorder)
        # Different keys, as the objective's masks are seeded by the keys of the studies.
        generators = [sample_generator(self.seed, f"{key}/student_prefix", epoch) for key in batch.keys]
        forced = sample_prefix_lengths(recorder.trajectories(batch.keys), tails, self.student_prefix, special.eos, generators)
        found, counts = self._decode(batch, teacher, student, self.distributions, forced)
        prefixes = [forced.tokens(row, tail, L) for row, tail in enumerate(tails.tolist())]
        return [None if t is None else prepend_prefix(t, prefix) for t, prefix in zip(found, prefixes, strict=True)], counts

    def _count(self, counts: CollectionCounts, device: torch.device) -> None:
        dropped = torch.tensor([counts.dropped_loops, counts.dropped_endless], device=device)
        if is_distributed():
            torch.distributed.all_reduce(dropped)
        loops, endless = dropped.tolist()
        self.dropped = {"loops": self.dropped["loops"] + loops, "endless": self.dropped["endless"] + endless}

    def scores(self) -> dict[str, float]:
        """Counts of dropped trajectories, of this run or of the whole collection."""
        if self._store is None:
            loops, endless = self.dropped["loops"], self.dropped["endless"]
        else:
            loops, endless = self._store.counts.dropped_loops, self._store.counts.dropped_endless
        return {"train/dropped_loops": float(loops), "train/dropped_endless": float(endless)}


@contextmanager
def _as_collected(batch: Batch) -> Iterator[None]:
    """Decode in the weights' own type, without autocast, as a collection does; keep the random state."""
    with torch.random.fork_rng(devices=[]), torch.autocast(batch.context_ids_BP.device.type, enabled=False):
        yield
