"""What an objective is given and what it is asked for: pseudo-labels in, masks out; rows in, loss out.

An objective knows token ids, masks and distributions of one batch; nothing of models or of how trajectories came to be.
Each states the masks it needs; the stage runs the models on them and hands back the rows.

Shapes: B batch, K masked copies, R response positions, M chosen positions (those masked and supervised, in (B, K, R)
order), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from echo_pl.diffusion.losses import GlobalCount, local_count
from echo_pl.structs import TopTargets


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """Teacher trajectories of a batch, padded to whole blocks."""

    token_BR: Tensor
    commit_step_BR: Tensor
    """From 1; 0 where the teacher has chosen nothing."""
    supervised_BR: Tensor
    """bool: positions that the teacher has chosen, up to the block of the first eos, of usable trajectories."""
    block_size: int
    target_BRV: Tensor | None = None
    """Stitched targets, for objectives that need them."""
    top_BR: TopTargets | None = None
    """In the place of ``target_BRV``: their likeliest tokens, (B, R, K)."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Predictions and targets at the chosen positions."""

    logits_MV: Tensor
    """The student's."""
    token_M: Tensor
    commit_step_M: Tensor
    sample_M: Tensor
    """Which sample of the batch a row is from."""
    copy_M: Tensor
    """Which masked copy a row is from."""
    block_M: Tensor
    """Which block of its sample a row is from."""
    eos: int
    target_MV: Tensor | None = None
    top_M: TopTargets | None = None
    """In the place of ``target_MV``."""
    reference_logits_MV: Tensor | None = None
    """The frozen teacher's, at the same rows of ``teacher_masks``; -inf for ids that no decoder emits. If asked for."""
    reference_masked_M: Tensor | None = None
    """bool: the teacher, too, saw the position masked."""
    global_count: GlobalCount = local_count
    """For means: from a count on this rank to that of all ranks, divided by their number."""


class Objective(Protocol):
    """A way to distil. ``progress`` runs from 0 to 1 over the training.

    Masks are bool (B, K, R): K copies of the response are noised differently and predicted in one forward. The stage
    takes away what may not be masked; rows are the positions that the student sees masked and that are supervised.
    """

    @property
    def name(self) -> str:
        """Short form in METHOD.md 3."""
        ...

    @property
    def needs_targets(self) -> bool:
        """Whether trajectories must carry distributions."""
        ...

    @property
    def needs_whole_targets(self) -> bool:
        """Whether the loss over the likeliest tokens of distributions, and the rest as one, is far from that over all of them."""
        return False

    def student_masks(self, labels: PseudoLabels, progress: float, generators: Sequence[torch.Generator]) -> Tensor:
        """What the student sees masked.

        Args:
            labels: the pseudo-labels.
            progress: of the training.
            generators: one per sample, fresh, and a function of (seed, sample key, epoch) alone.
        """
        ...

    def teacher_masks(self, labels: PseudoLabels, progress: float, generators: Sequence[torch.Generator]) -> Tensor | None:
        """What the frozen teacher sees masked, copy by copy beside the student's; None if it is not asked.

        The generators are as fresh as those of ``student_masks``, so that one draw can be made twice.
        """
        return None

    def loss(self, rows: Rows, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its detached parts, by name."""
        ...
