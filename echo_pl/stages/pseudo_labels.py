"""From a list of teacher trajectories to padded tensors on the block grid of a batch, and from these to an objective's rows.

Shapes: B batch, K masked copies, R response in whole blocks, M chosen positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echo_pl.diffusion.losses import GlobalCount, local_count
from echo_pl.diffusion.objectives import PseudoLabels, Rows
from echo_pl.diffusion.sequence import BlockedResponse
from echo_pl.structs import TopTargets, Trajectory


def pseudo_labels(trajectories: list[Trajectory | None], eos: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded pseudo-label tokens (B, R) and their lengths (B,); a sample without a trajectory is one eos."""
    rows = [torch.tensor([eos]) if t is None else t.token_R for t in trajectories]
    tokens_BR = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=eos)
    return tokens_BR.to(device), torch.tensor([len(row) for row in rows], device=device)


def align(trajectories: list[Trajectory | None], blocked: BlockedResponse, with_targets: bool) -> PseudoLabels:
    """Put commit steps and targets beside the tokens of a blocked response (behind its context tail).

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
            top_BR = _room(B, R, trajectory.top) if top_BR is None else top_BR
            _put(top_BR, (row, place), trajectory.top)
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
    """What an objective is given: predictions at the chosen positions of the masked copies, and what belongs to each."""
    sample_M, copy_M, place_M = chosen_BKR.nonzero(as_tuple=True)
    target_BRV, top_BR = labels.target_BRV, labels.top_BR
    target_MV = None if target_BRV is None else target_BRV[sample_M, place_M]
    if target_MV is None and top_BR is None and needs_targets:
        target_MV = logits_MV.detach()  # of no rows: another rank has some
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


def _room(B: int, R: int, like: TopTargets) -> TopTargets:
    K = like.token_MK.shape[-1]
    return TopTargets(
        token_MK=torch.zeros(B, R, K, dtype=torch.long), probability_MK=torch.zeros(B, R, K), tail_M=torch.zeros(B, R)
    )


def _put(room: TopTargets, place: tuple[int, slice], top: TopTargets) -> None:
    room.token_MK[place], room.probability_MK[place] = top.token_MK, top.probability_MK.float()
    room.tail_M[place] = top.tail_M.float()
