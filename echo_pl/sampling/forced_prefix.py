"""Forced prefixes: blocks that a report begins with, and that a sampler continues. A student writes them, the teacher completes.

Shapes: B batch, A active samples, L block size, W width of the forced tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from echo_pl.structs import TopTargets, Trajectory


@dataclass(frozen=True, kw_only=True)
class ForcedPrefix:
    """The first blocks of every sample's report, in whole blocks; a sample may have none."""

    token_BW: Tensor
    """Response tokens (after a context tail, on the absolute grid), padded on the right."""
    blocks_B: Tensor
    """Number of forced blocks of each sample; on the CPU."""

    def tokens(self, row: int, tail: int, block_size: int) -> Tensor:
        """The forced tokens of one sample, without padding."""
        return self.token_BW[row, : max(0, int(self.blocks_B[row]) * block_size - tail)]

    @classmethod
    def of(cls, prefixes: Sequence[Tensor], blocks: Sequence[int]) -> ForcedPrefix:
        """Build from one 1-D tensor of tokens per sample, and its number of blocks."""
        return cls(token_BW=torch.nn.utils.rnn.pad_sequence(list(prefixes), batch_first=True), blocks_B=torch.tensor(list(blocks)))

    def fill(self, block_ids_AL: Tensor, is_masked_AL: Tensor, rows_A: Tensor, tail_B: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Write the forced tokens of a block into it, and unmask them.

        Args:
            block_ids_AL: the block.
            is_masked_AL: bool.
            rows_A: rows of the batch, on the CPU.
            tail_B: context tokens in each sample's first block, on the CPU.
            block: its number.
        """
        is_forced_A = self.blocks_B[rows_A] > block
        if not bool(is_forced_A.any()):
            return block_ids_AL, is_masked_AL
        L, device = block_ids_AL.shape[1], block_ids_AL.device
        place_AL = block * L + torch.arange(L)[None] - tail_B[rows_A, None]
        token_AL = self.token_BW[rows_A].gather(1, place_AL.clamp(0, self.token_BW.shape[1] - 1)).to(device)
        take_AL = is_forced_A[:, None].to(device) & is_masked_AL
        return torch.where(take_AL, token_AL, block_ids_AL), is_masked_AL & ~take_AL


def sample_prefix_lengths(
    written: Sequence[Trajectory], tail_B: Tensor, share: float, eos: int, generators: Sequence[torch.Generator]
) -> ForcedPrefix:
    """Force a number of a student's first blocks for a share of the samples, and none for the others.

    The number is uniform, from one to all blocks before the one with eos, or before the last one without eos. So something is
    always left to complete.

    Args:
        written: the student's reports, in whole blocks.
        tail_B: context tokens in each sample's first block, on the CPU.
        share: share of the samples that get a prefix.
        eos: its id.
        generators: one per sample, fresh.
    """
    prefixes, blocks = [], []
    for trajectory, tail, generator in zip(written, tail_B.tolist(), generators, strict=True):
        L, token_R = trajectory.block_size, trajectory.token_R
        at_eos = (token_R == eos).nonzero()
        most = (tail + (int(at_eos[0, 0]) if len(at_eos) else len(token_R) - 1)) // L
        chosen, place = torch.rand(2, generator=generator).tolist()
        number = 1 + int(place * most) if most and chosen < share else 0
        prefixes.append(token_R[: max(0, number * L - tail)])
        blocks.append(number)
    return ForcedPrefix.of(prefixes, blocks)


def prepend_prefix(trajectory: Trajectory, prefix_R: Tensor) -> Trajectory:
    """Prepend the forced tokens to a trajectory, with commit step 0 and without targets."""
    W = len(prefix_R)
    if not W:
        return trajectory

    def after(value: Tensor, fill: float) -> Tensor:
        return torch.cat([value.new_full((W, *value.shape[1:]), fill), value])

    top = trajectory.top
    return replace(
        trajectory,
        token_R=torch.cat([prefix_R, trajectory.token_R]),
        commit_step_R=after(trajectory.commit_step_R, 0),
        confidence_R=after(trajectory.confidence_R, 1.0),
        target_RV=None if trajectory.target_RV is None else after(trajectory.target_RV, 0.0),
        top=None
        if top is None
        else TopTargets(
            token_MK=after(top.token_MK, 0), probability_MK=after(top.probability_MK, 0.0), tail_M=after(top.tail_M, 0.0)
        ),
    )
