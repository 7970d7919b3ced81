"""METHOD.md 3, phase 2, in stage 3: from trajectories to the RAD sequence that the objective's masks make of them, and to its loss.

Used by the stage by composition. Is handed the models; knows nothing of how trajectories came to be, of trainers or of logging.

Shapes: B batch, K masked copies, R response in whole blocks, M chosen positions, V vocabulary, G blocks.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.losses import local_count
from echo_pl.diffusion.noise import sample_generator
from echo_pl.diffusion.objectives import Objective, Rows
from echo_pl.diffusion.sequence import (
    BlockedContext,
    BlockedResponse,
    BlockLayout,
    block_context,
    block_response,
    rad_sequence,
)
from echo_pl.stages.mean_field import gaps_of
from echo_pl.stages.pseudo_labels import align, pseudo_labels, rows_of
from echo_pl.stages.reduction import all_reduce_mean, is_distributed
from echo_pl.stages.sequence_logits import SequenceLogits
from echo_pl.stages.teacher_decode import Found
from echo_pl.structs import Batch, SpecialTokens


class Distillation:
    """What a student learns from trajectories, and how far one step is from them.

    Args:
        special: token ids.
        layout: block grid of teacher and student.
        objective: what the student is trained on.
        logits: how sequences are run.
        seed: of the objective's masks.
    """

    def __init__(
        self, special: SpecialTokens, layout: BlockLayout, objective: Objective, logits: SequenceLogits, seed: int
    ) -> None:
        self.special, self.layout, self.objective, self.logits, self.seed = special, layout, objective, logits, seed

    def loss(
        self, student: VLM, teacher: VLM, batch: Batch, trajectories: Found, epoch: int, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The student sees the pseudo-labels as x0 and the objective's masks as xt; ``progress`` runs from 0 to 1."""
        blocked = self.blocked(batch, trajectories)
        labels = align(trajectories, blocked, self.objective.needs_targets)
        maskable_B1R = blocked.maskable_BR[:, None]
        masked_BKR = maskable_B1R & self.objective.student_masks(labels, progress, self._generators(batch, epoch))
        chosen_BKR = masked_BKR & labels.supervised_BR[:, None]
        logits_MV = self._predict(student, batch, blocked, masked_BKR, chosen_BKR)
        global_count = all_reduce_mean if is_distributed() else local_count
        rows = rows_of(logits_MV, labels, chosen_BKR, self.special.eos, self.objective.needs_targets, global_count)
        teacher_BKR = self.objective.teacher_masks(labels, progress, self._generators(batch, epoch))
        if teacher_BKR is not None:
            rows = self._teacher_rows(rows, teacher, batch, blocked, teacher_BKR & maskable_B1R, chosen_BKR)
        if not bool(all_reduce_mean(chosen_BKR.sum()) > 0):
            # No usable trajectory on any rank: a zero on the graph, as there must be a backward.
            return logits_MV.sum() * 0.0, {}
        return self.objective.loss(rows, progress)

    @torch.no_grad()
    def mean_field_gaps(self, vlm: VLM, batch: Batch, trajectories: Found) -> Tensor:
        """Gaps (G,) of all blocks of the teacher's trajectories under one step of a model, in nats.

        See :func:`echo_pl.diffusion.mean_field.mean_field_gaps`. In the weights' own precision: rounding would be a gap, too.
        """
        blocked = self.blocked(batch, trajectories)
        labels = align(trajectories, blocked, with_targets=False)
        with torch.autocast(batch.context_ids_BP.device.type, enabled=False):
            logits_MV = self._predict(vlm, batch, blocked, blocked.maskable_BR[:, None], labels.supervised_BR[:, None])
        return gaps_of(trajectories, labels, logits_MV, self.special.never_sampled)

    def reference_loss(self, vlm: VLM, batch: Batch) -> Tensor:
        """Cross-entropy of the references from fully masked blocks."""
        prompt = self.prompt(batch)
        blocked = block_response(prompt, batch.response_ids_BR, batch.response_lengths_B, self.layout, self.special)
        masked_BR = blocked.maskable_BR
        chosen_BR = masked_BR & blocked.supervised_BR
        logits_MV = self._predict(vlm, batch, blocked, masked_BR[:, None], chosen_BR[:, None])
        return torch.nn.functional.cross_entropy(logits_MV.float(), blocked.clean_ids_BR[chosen_BR])

    def prompt(self, batch: Batch) -> BlockedContext:
        """The contexts on the block grid."""
        return block_context(batch.context_ids_BP, batch.context_lengths_B, self.layout, self.special.image)

    def blocked(self, batch: Batch, trajectories: Found) -> BlockedResponse:
        """The pseudo-labels on the block grid."""
        tokens_BR, lengths_B = pseudo_labels(trajectories, self.special.eos, batch.context_ids_BP.device)
        return block_response(self.prompt(batch), tokens_BR, lengths_B, self.layout, self.special)

    def _generators(self, batch: Batch, epoch: int) -> list[torch.Generator]:
        return [sample_generator(self.seed, key, epoch) for key in batch.keys]

    def _predict(self, vlm: VLM, batch: Batch, blocked: BlockedResponse, masked_BKR: Tensor, chosen_BKR: Tensor) -> Tensor:
        """Logits (M, V) at the chosen positions of masked copies, all copies in one forward."""
        clean_BKR = blocked.clean_ids_BR[:, None].expand_as(masked_BKR)
        sequence = rad_sequence(blocked, torch.where(masked_BKR, self.special.mask, clean_BKR))
        return self.logits(vlm, sequence, batch.images, sequence.noisy_positions(chosen_BKR))

    def _teacher_rows(
        self, rows: Rows, teacher: VLM, batch: Batch, blocked: BlockedResponse, masked_BKR: Tensor, chosen_BKR: Tensor
    ) -> Rows:
        """Add what the frozen teacher predicts at the same positions, seeing its own masks."""
        with torch.no_grad():
            logits_MV = self._predict(teacher, batch, blocked, masked_BKR, chosen_BKR)
        never = torch.tensor(self.special.never_sampled, device=logits_MV.device)
        return replace(
            rows,
            reference_logits_MV=logits_MV.index_fill(-1, never, -torch.inf),
            reference_masked_M=masked_BKR[chosen_BKR],
        )
