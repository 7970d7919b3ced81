"""Phase 2 of stage 3: from trajectories to a RAD sequence under the objective's masks, and to its loss.

Implements docs/explain/method.md, "Stage 3: Direct Conditional Distillation". Used by the stage by composition.

Shapes: B batch, K masked copies, R response in whole blocks, M chosen positions, V vocabulary, G blocks.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.losses import GlobalCount, local_count
from echo_pl.diffusion.noise import sample_generator
from echo_pl.diffusion.objectives import Objective, PseudoLabels, Rows
from echo_pl.diffusion.sequence import (
    BlockedContext,
    BlockedResponse,
    BlockLayout,
    block_context,
    block_response,
    rad_sequence,
)
from echo_pl.stages.mean_field import gaps_of
from echo_pl.stages.parallel import all_reduce_mean, is_distributed
from echo_pl.stages.sequence_logits import SequenceLogits
from echo_pl.stages.trajectory_source import Found
from echo_pl.structs import Batch, SpecialTokens, TopTargets


class Distillation:
    """Losses of a student on trajectories, and the gap between them and one step.

    Args:
        special: token ids.
        layout: block grid of teacher and student.
        objective: training objective of the student.
        logits: runs the sequences.
        seed: seed of the objective's masks.
    """

    def __init__(
        self, special: SpecialTokens, layout: BlockLayout, objective: Objective, logits: SequenceLogits, seed: int
    ) -> None:
        self.special, self.layout, self.objective, self.logits, self.seed = special, layout, objective, logits, seed

    def loss(
        self, student: VLM, teacher: VLM, batch: Batch, trajectories: Found, epoch: int, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts, with the pseudo-labels as x0 and the objective's masks as xt; ``progress`` runs from 0 to 1."""
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

        See :func:`echo_pl.diffusion.mean_field.mean_field_gaps`. Computed in the weights' own
        precision, as rounding would add to the gap.
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
        """Add the frozen teacher's predictions at the same positions, under its own masks."""
        with torch.no_grad():
            logits_MV = self._predict(teacher, batch, blocked, masked_BKR, chosen_BKR)
        never = torch.tensor(self.special.never_sampled, device=logits_MV.device)
        return replace(
            rows,
            reference_logits_MV=logits_MV.index_fill(-1, never, -torch.inf),
            reference_masked_M=masked_BKR[chosen_BKR],
        )


def pseudo_labels(trajectories: Found, eos: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded pseudo-label tokens (B, R) and their lengths (B,); a sample without a trajectory is one eos."""
    rows = [torch.tensor([eos]) if t is None else t.token_R for t in trajectories]
    tokens_BR = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=eos)
    return tokens_BR.to(device), torch.tensor([len(row) for row in rows], device=device)


def align(trajectories: Found, blocked: BlockedResponse, with_targets: bool) -> PseudoLabels:
    """Align commit steps and targets with the tokens of a blocked response, after its context tail.

    Raises:
        ValueError: targets are needed and a trajectory has none.
    """
    B, R = blocked.clean_ids_BR.shape
    device = blocked.clean_ids_BR.device
    tails = blocked.prompt.tail_lengths_B.tolist()
    commit_step_BR = torch.zeros(B, R, dtype=torch.long)
    supervised_BR = torch.zeros(B, R, dtype=torch.bool)
    target_BRV: Tensor | None = None
    top_BR: TopTargets | None = None
    for row, trajectory in enumerate(trajectories):
        if trajectory is None:
            continue
        place = slice(tails[row], tails[row] + len(trajectory.token_R))
        commit_step_BR[row, place] = trajectory.commit_step_R
        supervised_BR[row, place] = trajectory.commit_step_R > 0
        if not with_targets:
            continue
        if trajectory.top is not None:
            top_BR = _empty_top(B, R, trajectory.top) if top_BR is None else top_BR
            _write_top(top_BR, (row, place), trajectory.top)
        elif trajectory.target_RV is not None:
            if target_BRV is None:
                target_BRV = torch.zeros(B, R, trajectory.target_RV.shape[-1])
            target_BRV[row, place] = trajectory.target_RV.float()
        else:
            raise ValueError(f"the trajectory of {trajectory.key} has no distributions, and this objective needs them")
    return PseudoLabels(
        token_BR=blocked.clean_ids_BR,
        commit_step_BR=commit_step_BR.to(device),
        supervised_BR=supervised_BR.to(device),
        block_size=blocked.layout.block_size,
        target_BRV=None if target_BRV is None else target_BRV.to(device),
        top_BR=None if top_BR is None else top_BR.to(device),
    )


def rows_of(
    logits_MV: Tensor,
    labels: PseudoLabels,
    chosen_BKR: Tensor,
    eos: int,
    needs_targets: bool,
    global_count: GlobalCount = local_count,
) -> Rows:
    """Input of an objective: predictions at the chosen positions of the masked copies, with their labels and targets."""
    sample_M, copy_M, place_M = chosen_BKR.nonzero(as_tuple=True)
    target_BRV, top_BR = labels.target_BRV, labels.top_BR
    target_MV = None if target_BRV is None else target_BRV[sample_M, place_M]
    if target_MV is None and top_BR is None and needs_targets:
        target_MV = logits_MV.detach()  # no rows here, but another rank has some
    return Rows(
        logits_MV=logits_MV,
        token_M=labels.token_BR[sample_M, place_M],
        commit_step_M=labels.commit_step_BR[sample_M, place_M],
        sample_M=sample_M,
        copy_M=copy_M,
        block_M=place_M // labels.block_size,
        eos=eos,
        target_MV=target_MV,
        top_M=None if top_BR is None else top_BR.at(sample_M, place_M),
        global_count=global_count,
    )


def _empty_top(B: int, R: int, like: TopTargets) -> TopTargets:
    K = like.token_MK.shape[-1]
    return TopTargets(
        token_MK=torch.zeros(B, R, K, dtype=torch.long), probability_MK=torch.zeros(B, R, K), tail_M=torch.zeros(B, R)
    )


def _write_top(buffer: TopTargets, place: tuple[int, slice], top: TopTargets) -> None:
    buffer.token_MK[place], buffer.probability_MK[place] = top.token_MK, top.probability_MK.float()
    buffer.tail_M[place] = top.tail_M.float()
