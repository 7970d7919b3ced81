"""Recording a decode: the hook that every sampler calls, and the recorder that turns its calls into trajectories.

A committed position is recorded with its distribution *at that step* (docs/explain/method.md,
"Stage 3: Direct Conditional Distillation", phase 1).

Shapes: A active samples, L block size, V vocabulary, R positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from echo_pl.diffusion.top_targets import top_targets
from echo_pl.structs import TopTargets, Trajectory


class Recorder(Protocol):
    """Receives every commit of a decode."""

    def on_commit(
        self, *, rows_A: Tensor, block: int, step: int, committed_AL: Tensor, token_AL: Tensor, log_probs_ALV: Tensor
    ) -> None:
        """Record the commits of a denoising forward.

        Args:
            rows_A: row of each active sample in the batch.
            block: block number, from 0.
            step: denoising step within the block, from 1.
            committed_AL: bool, committed now.
            token_AL: tokens (meaningful where committed).
            log_probs_ALV: the distributions of this step.
        """
        ...


class _Commits(NamedTuple):
    """Commits of one step."""

    step: int
    rows_A: Tensor
    committed_AL: Tensor
    token_AL: Tensor
    confidence_AL: Tensor
    targets: tuple[Tensor, ...]
    """Targets of the committed positions, sample after sample: (), (distribution,) or (top tokens, probabilities, tail)."""


class _Block(NamedTuple):
    """One sample's block, after all its steps."""

    token: Tensor
    commit_step: Tensor
    confidence: Tensor
    targets: tuple[Tensor, ...]


class TrajectoryRecorder:
    """Keeps commit steps, confidences and, optionally, distributions."""

    def __init__(self, distributions: bool = False, top: int = 0) -> None:
        """Record.

        Args:
            distributions: also keep the distribution of every position (R * V numbers a sample).
            top: likeliest tokens to keep of each distribution, with the probability of all others as one; 0: all tokens.

        Raises:
            ValueError: ``top`` is negative.
        """
        if top < 0:
            raise ValueError(f"the number of kept tokens must not be negative, got {top}")
        self.distributions, self.top = distributions, top
        self._blocks: dict[int, list[_Commits]] = {}

    def on_commit(
        self, *, rows_A: Tensor, block: int, step: int, committed_AL: Tensor, token_AL: Tensor, log_probs_ALV: Tensor
    ) -> None:
        """See :class:`Recorder`."""
        confidence = log_probs_ALV.gather(-1, token_AL[..., None])[..., 0].exp()
        # Only committed positions are kept, so a trajectory costs R rows of V and not R * steps.
        targets = self._targets(log_probs_ALV[committed_AL].exp()) if self.distributions else ()
        committed = committed_AL.cpu()
        entry = _Commits(step, rows_A.cpu(), committed, token_AL.cpu(), confidence.cpu(), targets)
        self._blocks.setdefault(block, []).append(entry)

    def _targets(self, target_MV: Tensor) -> tuple[Tensor, ...]:
        if not self.top:
            return (target_MV.cpu(),)
        top = top_targets(target_MV, self.top).to("cpu")
        return top.token_MK, top.probability_MK, top.tail_M

    def trajectories(self, keys: Sequence[str]) -> list[Trajectory]:
        """One trajectory per sample of the decoded batch, in its order."""
        blocks = [self._blocks[block] for block in sorted(self._blocks)]
        parts = [[self._block_of(entries, row) for entries in blocks] for row in range(len(keys))]
        # The recorded width: after a context tail the first block has fewer tokens.
        width = blocks[0][0].committed_AL.shape[1] if blocks else 0
        return [self._assemble(key, width, blocks) for key, blocks in zip(keys, parts, strict=True)]

    @staticmethod
    def _block_of(entries: list[_Commits], row: int) -> _Block | None:
        """One sample's block; None if the sample had stopped before, or the block was forced."""
        L = entries[0].committed_AL.shape[1]
        token, when = torch.zeros(L, dtype=torch.long), torch.zeros(L, dtype=torch.long)
        sure = torch.zeros(L)
        targets = tuple(kind.new_zeros(L, *kind.shape[1:]) for kind in entries[0].targets)
        for entry in entries:
            at = (entry.rows_A == row).nonzero()
            if len(at) == 0:
                continue
            place = int(at[0, 0])
            now = entry.committed_AL[place]
            token[now], when[now], sure[now] = entry.token_AL[place][now], entry.step, entry.confidence_AL[place][now].float()
            start = int(entry.committed_AL[:place].sum())
            for room, kind in zip(targets, entry.targets, strict=True):
                room[now] = kind[start : start + int(now.sum())]
        done = when > 0  # the context tail is never committed, and no part of a response
        if not bool(done.any()):
            return None
        return _Block(token[done], when[done], sure[done], tuple(room[done] for room in targets))

    @staticmethod
    def _assemble(key: str, block_size: int, blocks: list[_Block | None]) -> Trajectory:
        present = [block for block in blocks if block is not None]
        if not present:
            raise ValueError(f"nothing was recorded for sample {key}: pass the recorder to generate() first")
        targets = [torch.cat(kinds) for kinds in zip(*(block.targets for block in present), strict=True)]
        return Trajectory(
            key=key,
            block_size=block_size,
            token_R=torch.cat([block.token for block in present]),
            commit_step_R=torch.cat([block.commit_step for block in present]),
            confidence_R=torch.cat([block.confidence for block in present]),
            target_RV=targets[0] if len(targets) == 1 else None,
            top=TopTargets(token_MK=targets[0], probability_MK=targets[1], tail_M=targets[2]) if len(targets) == 3 else None,
        )
