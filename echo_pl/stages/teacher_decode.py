"""METHOD.md 3, phase 1, in stage 3: the teacher's trajectories of a batch, decoded now; by option behind what the student began.

Used by the stage by composition. Knows samplers and prefixes; nothing of stored trajectories, of losses or of counting.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.noise import sample_generator
from echo_pl.sampling.collect import usable_trajectories
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.forced_prefix import prepend_prefix, sample_prefix_lengths
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.sampling.tilted import Tilt
from echo_pl.sampling.trajectory import TrajectoryRecorder
from echo_pl.sampling.trajectory_store import CollectionCounts
from echo_pl.structs import Batch, SpecialTokens, Trajectory

Found = list[Trajectory | None]


class TeacherDecode:
    """Decodes trajectories.

    Args:
        special: token ids.
        decode: how the teacher decodes.
        seed: of the draws of prefixes.
        tilt: weight of the student that the teacher leans to; 0: none.
    """

    def __init__(self, special: SpecialTokens, decode: DecodeConfig, seed: int, tilt: float = 0.0) -> None:
        self.special, self.decode, self.seed, self.tilt = special, decode, seed, tilt

    def __call__(
        self, teacher: VLM, batch: Batch, distributions: bool, student: VLM | None = None
    ) -> tuple[Found, CollectionCounts]:
        """The teacher's trajectories of a batch, None where there is no usable one: its own, or leaning to a student."""
        # Autocast is for training: decoded in the weights' own dtype, trajectories are those that a collection stores.
        with torch.random.fork_rng(devices=[]), torch.autocast(batch.context_ids_BP.device.type, enabled=False):
            return usable_trajectories(self._sampler(teacher, student), batch, distributions)

    def _sampler(self, teacher: VLM, student: VLM | None) -> BlockSampler:
        tilt = None if student is None or not self.tilt else Tilt(student=student, weight=self.tilt)
        return BlockSampler(teacher, self.special, self.decode, tilt)

    def behind_student(
        self, teacher: VLM, student: VLM, batch: Batch, distributions: bool, share: float, epoch: int, tail_B: Tensor
    ) -> tuple[Found, CollectionCounts]:
        """For a share of the studies, the first blocks in one step by the student and the rest by the teacher.

        What the student wrote is in the trajectories at commit step 0: it is seen, and not learnt.
        """
        one_step = replace(self.decode, denoising_steps=1, kv_cache="fused", gate=0.0)
        tails = tail_B.cpu()
        # Keys of their own: the objective's masks are drawn from those of the studies.
        generators = [sample_generator(self.seed, f"{key}/student_prefix", epoch) for key in batch.keys]
        with torch.random.fork_rng(devices=[]), torch.autocast(batch.context_ids_BP.device.type, enabled=False):
            recorder = TrajectoryRecorder()
            BlockSampler(student, self.special, one_step).generate(batch, recorder)
            written = recorder.trajectories(batch.keys)
            forced = sample_prefix_lengths(written, tails, share, self.special.eos, generators)
            found, counts = usable_trajectories(self._sampler(teacher, student), batch, distributions, prefix=forced)
        L = self.decode.block_size
        prefixes = [forced.tokens(row, tail, L) for row, tail in enumerate(tails.tolist())]
        return [None if t is None else prepend_prefix(t, prefix) for t, prefix in zip(found, prefixes, strict=True)], counts
