"""Protocol of an objective: pseudo-labels to masks, rows to a loss.

An objective returns the masks that it needs. The stage runs the models on them and passes the rows to the loss.

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
    """Commit steps from 1; 0 where the teacher has chosen nothing."""
    supervised_BR: Tensor
    """bool: positions that the teacher has chosen, up to the block of the first eos, of usable trajectories."""
    block_size: int
    target_BRV: Tensor | None = None
    """Stitched targets, for objectives that need them."""
    top_BR: TopTargets | None = None
    """Likeliest tokens of the targets, (B, R, K), instead of ``target_BRV``."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Predictions and targets at the chosen positions."""

    logits_MV: Tensor
    """Logits of the student."""
    token_M: Tensor
    commit_step_M: Tensor
    sample_M: Tensor
    """Sample number of each row in the batch."""
    copy_M: Tensor
    """Masked copy of each row."""
    block_M: Tensor
    """Block number of each row in its sample."""
    eos: int
    target_MV: Tensor | None = None
    top_M: TopTargets | None = None
    """Targets by their likeliest tokens, instead of ``target_MV``."""
    reference_logits_MV: Tensor | None = None
    """Logits of the frozen teacher at the same rows of ``teacher_masks``; -inf for ids that no decoder emits."""
    reference_masked_M: Tensor | None = None
    """bool: the position was masked for the teacher too."""
    global_count: GlobalCount = local_count
    """Reduction of the counts that means are divided by, over all ranks."""


class Objective(Protocol):
    """Distillation objective. ``progress`` runs from 0 to 1 over the training.

    Masks are bool (B, K, R): K copies of the response are noised differently and predicted in one forward. The stage
    removes positions that may not be masked; rows are the masked and supervised positions of the student.
    """

    @property
    def name(self) -> str:
        """Short name in docs/explain/method.md."""
        ...

    @property
    def needs_targets(self) -> bool:
        """True if trajectories must hold distributions."""
        ...

    @property
    def needs_whole_targets(self) -> bool:
        """True if the loss over the likeliest tokens and the rest as one event is far from that over all tokens."""
        return False

    def student_masks(self, labels: PseudoLabels, progress: float, generators: Sequence[torch.Generator]) -> Tensor:
        """Masks of the student's input.

        Args:
            labels: pseudo-labels.
            progress: share of the training that is done.
            generators: one per sample, a function of (seed, sample key, epoch) alone.
        """
        ...

    def teacher_masks(self, labels: PseudoLabels, progress: float, generators: Sequence[torch.Generator]) -> Tensor | None:
        """Masks of the frozen teacher's input, copy by copy; None if the objective needs no teacher.

        The generators start in the same state as those of ``student_masks``, so that a draw can be repeated.
        """
        return None

    def loss(self, rows: Rows, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its detached parts by name."""
        ...
