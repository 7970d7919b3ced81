"""Watching a decode: the hook that every sampler calls, and the recorder that turns it into trajectories.

METHOD.md 3, phase 1, step 4: what is recorded of a committed position is its distribution *at that step*. Stage 3, the
trajectory logger and the demo page all read this one; nobody has a copy of the decoding loop.

Shapes: A active samples, L block size, V vocabulary, R positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from echo_pl.structs import Trajectory


class Recorder(Protocol):
    """Receives every commit of a decode."""

    def on_commit(
        self, *, rows_A: Tensor, block: int, step: int, committed_AL: Tensor, token_AL: Tensor, log_probs_ALV: Tensor
    ) -> None:
        """Called after each denoising forward.

        Args:
            rows_A: row of each active sample in the batch.
            block: block number, from 0.
            step: denoising step within the block, from 1.
            committed_AL: bool, committed now.
            token_AL: tokens (meaningful where committed).
            log_probs_ALV: the distributions of this step.
        """
        ...


class TrajectoryRecorder:
    """Keeps who was committed when, with what confidence and, when asked, which distribution."""

    def __init__(self, distributions: bool = False) -> None:
        """Record; ``distributions`` also keeps the whole distribution of every position (R * V numbers a sample)."""
        self.distributions = distributions
        self._blocks: dict[int, list[tuple[int, Tensor, Tensor, Tensor, Tensor, Tensor | None]]] = {}

    def on_commit(
        self, *, rows_A: Tensor, block: int, step: int, committed_AL: Tensor, token_AL: Tensor, log_probs_ALV: Tensor
    ) -> None:
        """See :class:`Recorder`."""
        confidence = log_probs_ALV.gather(-1, token_AL[..., None])[..., 0].exp()
        committed = committed_AL.cpu()
        # Only what is committed is kept, so a trajectory costs R rows of V and not R * steps.
        targets = log_probs_ALV[committed_AL].exp().cpu() if self.distributions else None
        entry = (step, rows_A.cpu(), committed, token_AL.cpu(), confidence.cpu(), targets)
        self._blocks.setdefault(block, []).append(entry)

    def trajectories(self, keys: Sequence[str]) -> list[Trajectory]:
        """One trajectory per sample of the decoded batch, in its order."""
        blocks = self._ordered()
        parts = [[self._block_rows(entries, row) for entries in blocks] for row in range(len(keys))]
        # As wide as it was recorded: after a context tail, what is left of a first block is shorter than a block.
        width = blocks[0][0][2].shape[1] if blocks else 0
        return [self._assemble(key, width, blocks) for key, blocks in zip(keys, parts, strict=True)]

    def _ordered(self) -> list[list[tuple[int, Tensor, Tensor, Tensor, Tensor, Tensor | None]]]:
        return [self._blocks[block] for block in sorted(self._blocks)]

    @staticmethod
    def _block_rows(
        entries: list[tuple[int, Tensor, Tensor, Tensor, Tensor, Tensor | None]], row: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None] | None:
        """Tokens, steps, confidences and targets of one sample's block; None if it had stopped before."""
        L = entries[0][2].shape[1]
        token, when = torch.zeros(L, dtype=torch.long), torch.zeros(L, dtype=torch.long)
        sure = torch.zeros(L)
        target: Tensor | None = None
        for step, rows, committed, tokens, confidence, targets in entries:
            at = (rows == row).nonzero()
            if len(at) == 0:
                continue
            place = int(at[0, 0])
            now = committed[place]
            token[now], when[now], sure[now] = tokens[place][now], step, confidence[place][now].float()
            if targets is not None:
                if target is None:
                    target = targets.new_zeros(L, targets.shape[-1])
                start = int(committed[:place].sum())
                target[now] = targets[start : start + int(now.sum())]
        done = when > 0  # the context tail of the absolute grid is never committed, and not part of a response
        if not bool(done.any()):
            return None
        return token[done], when[done], sure[done], None if target is None else target[done]

    @staticmethod
    def _assemble(key: str, block_size: int, blocks: list[tuple[Tensor, Tensor, Tensor, Tensor | None] | None]) -> Trajectory:
        present = [block for block in blocks if block is not None]
        if not present:
            raise ValueError(f"nothing was recorded for sample {key}: pass the recorder to generate() first")
        targets = [block[3] for block in present if block[3] is not None]
        return Trajectory(
            key=key,
            block_size=block_size,
            token_R=torch.cat([block[0] for block in present]),
            commit_step_R=torch.cat([block[1] for block in present]),
            confidence_R=torch.cat([block[2] for block in present]),
            target_RV=torch.cat(targets) if targets else None,
        )
