"""The mean-field gap of a validation. The teacher's decodes are kept, as neither it nor the studies change.

Shapes: R response in whole blocks, M chosen positions, V vocabulary, G blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from echo_pl.diffusion.mean_field import mean_field_gaps, one_step_log_probs
from echo_pl.diffusion.objectives import PseudoLabels
from echo_pl.stages.parallel import is_distributed
from echo_pl.structs import Batch, Trajectory

Gaps = Callable[[list[Trajectory | None]], Tensor]
"""From the trajectories of a batch to the gaps of their blocks."""


def gaps_of(
    trajectories: Sequence[Trajectory | None], labels: PseudoLabels, logits_MV: Tensor, never_sampled: Sequence[int]
) -> Tensor:
    """Gaps (G,) of all blocks that a teacher has decoded.

    Args:
        trajectories: trajectories of a batch.
        labels: the same on the batch's block grid.
        logits_MV: logits at the supervised positions, with all of their blocks masked.
        never_sampled: ids that no decoder emits.
    """
    chosen_BR = labels.supervised_BR
    one_step_M = one_step_log_probs(logits_MV, labels.token_BR[chosen_BR], never_sampled)
    confidence = [t.confidence_R[t.commit_step_R > 0] for t in trajectories if t is not None]
    chain_M = torch.cat([torch.empty(0), *confidence]).log().to(one_step_M.device)
    row_M, place_M = chosen_BR.nonzero(as_tuple=True)
    return mean_field_gaps(chain_M, one_step_M, row_M * chosen_BR.shape[1] + place_M // labels.block_size)


class GapCheck:
    """Mean gap per block of the student and of its teacher over the first ``batches`` validation batches of an epoch."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self._decoded: dict[tuple[str, ...], tuple[list[Trajectory | None], Tensor]] = {}
        self._sums = torch.zeros(3)

    def start(self, device: torch.device) -> None:
        """Start an epoch."""
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def update(
        self, batch: Batch, batch_index: int, decode: Callable[[], list[Trajectory | None]], student: Gaps, teacher: Gaps
    ) -> None:
        """Measure one batch, if it is among the first.

        Args:
            batch: a validation batch.
            batch_index: its number.
            decode: decodes the teacher's trajectories; called once per batch and training.
            student: gaps of the student.
            teacher: gaps of the teacher; called once per batch and training.
        """
        if batch_index >= self.batches:
            return
        if batch.keys not in self._decoded:
            found = decode()
            self._decoded[batch.keys] = (found, teacher(found).double().sum().cpu())
        trajectories, of_teacher = self._decoded[batch.keys]
        gaps = student(trajectories).double()
        self._sums += torch.stack([gaps.sum(), of_teacher.to(gaps.device), gaps.new_tensor(len(gaps))])

    def compute(self) -> dict[str, float]:
        """``val/mean_field_gap`` and ``val/mean_field_gap_teacher``, in nats per block; empty if no rank has a block."""
        if self.batches == 0:
            return {}
        sums = self._sums.clone()
        if is_distributed():
            dist.all_reduce(sums)
        student, teacher, blocks = sums.tolist()
        if not blocks:
            return {}
        return {"val/mean_field_gap": student / blocks, "val/mean_field_gap_teacher": teacher / blocks}
