"""Phase 1 of stage 3: trajectories of a batch, from a store or decoded now, and counts of dropped ones.

Implements docs/explain/method.md, "Stage 3, DCDModule". Used by the stage by composition.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from echo_pl.backbone.fingerprint import weights_fingerprint
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.noise import sample_generator
from echo_pl.sampling.collect import store_identity, usable_trajectories
from echo_pl.sampling.config import DecodeConfig, check_weight
from echo_pl.sampling.decoder import StageDecoder
from echo_pl.sampling.forced_prefix import prepend_prefix, sample_prefix_lengths
from echo_pl.sampling.sampler import BlockSampler
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
        self.decode = TeacherDecode(decoder, decode, seed, tilt)
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
        store.check(
            store_identity(self.decode.decode, weights_fingerprint(teacher), data, self.distributions, tilt=self.decode.tilt)
        )
        kept, vocabulary = store.identity.kept_tokens, len(teacher.network.lm_head.weight)
        if self._whole and 0 < kept < vocabulary:
            log.warning(
                "the trajectories in %s keep the %s likeliest of %s tokens of every distribution, and reverse KL loses several "
                "per cent of itself on them: collect whole ones (echo-pl trajectories collect --keep 0; in a sweep "
                "sweep.kept_tokens=0), or "
                "leave stage.module.trajectories unset to decode on the fly",
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
            found, counts = self.decode.after_student(
                teacher, student, batch, self.distributions, self.student_prefix, epoch, tail_B
            )
        else:
            found, counts = self.decode(teacher, batch, self.distributions, student)
        self._count(counts, tail_B.device)
        return found

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


class TeacherDecode:
    """Decodes a teacher's trajectories; see :class:`TrajectorySource` for the arguments."""

    def __init__(self, decoder: StageDecoder, decode: DecodeConfig, seed: int, tilt: float) -> None:
        self.decoder, self.decode, self.seed, self.tilt = decoder, decode, seed, tilt

    def __call__(
        self, teacher: VLM, batch: Batch, distributions: bool, student: VLM | None = None
    ) -> tuple[Found, CollectionCounts]:
        """The teacher's trajectories of a batch; with ``student``, tilted towards it."""
        # Without autocast, trajectories are the same as those that a collection stores.
        with torch.random.fork_rng(devices=[]), torch.autocast(batch.context_ids_BP.device.type, enabled=False):
            return usable_trajectories(self._sampler(teacher, student), batch, distributions)

    def _sampler(self, teacher: VLM, student: VLM | None) -> BlockSampler:
        tilt = None if student is None or not self.tilt else Tilt(student=student, weight=self.tilt)
        return self.decoder.multi_step(teacher, tilt)

    def after_student(
        self, teacher: VLM, student: VLM, batch: Batch, distributions: bool, share: float, epoch: int, tail_B: Tensor
    ) -> tuple[Found, CollectionCounts]:
        """For a share of the studies, the student writes the first blocks in one step, and the teacher the rest.

        The student's tokens have commit step 0 in the trajectories: they are context, and not trained on.
        """
        tails = tail_B.cpu()
        # Different keys, as the objective's masks are seeded by the keys of the studies.
        generators = [sample_generator(self.seed, f"{key}/student_prefix", epoch) for key in batch.keys]
        with torch.random.fork_rng(devices=[]), torch.autocast(batch.context_ids_BP.device.type, enabled=False):
            recorder = TrajectoryRecorder()
            self.decoder.multi_step(student, denoising_steps=1, kv_cache="fused", gate=0.0).generate(batch, recorder)
            written = recorder.trajectories(batch.keys)
            forced = sample_prefix_lengths(written, tails, share, self.decoder.special.eos, generators)
            found, counts = usable_trajectories(self._sampler(teacher, student), batch, distributions, prefix=forced)
        L = self.decode.block_size
        prefixes = [forced.tokens(row, tail, L) for row, tail in enumerate(tails.tolist())]
        return [None if t is None else prepend_prefix(t, prefix) for t, prefix in zip(found, prefixes, strict=True)], counts
