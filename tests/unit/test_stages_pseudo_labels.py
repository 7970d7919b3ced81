"""Trajectories on the block grid of a batch."""

from __future__ import annotations

import pytest
import torch
from models import SPECIAL, make_batch

from echo_pl.diffusion.sequence import BlockedResponse, BlockLayout, block_context, block_response
from echo_pl.stages.distillation import align, pseudo_labels
from echo_pl.structs import Trajectory

CPU = torch.device("cpu")
V = 5


def trajectory(length: int, distributions: bool = True) -> Trajectory:
    generator = torch.Generator().manual_seed(length)
    return Trajectory(
        key=f"study-{length}",
        block_size=4,
        token_R=torch.randint(0, 90, (length,), generator=generator),
        commit_step_R=torch.randint(1, 5, (length,), generator=generator),
        confidence_R=torch.ones(length),
        target_RV=torch.rand(length, V, generator=generator) if distributions else None,
    )


def blocked(trajectories: list[Trajectory | None], contexts: list[int], grid: str) -> BlockedResponse:
    tokens, lengths = pseudo_labels(trajectories, SPECIAL.eos, CPU)
    batch = make_batch(contexts, [4] * len(contexts))
    layout = BlockLayout(block_size=4, grid=grid)
    prompt = block_context(batch.context_ids_BP, batch.context_lengths_B, layout, SPECIAL.image)
    return block_response(prompt, tokens, lengths, layout, SPECIAL)


# On the absolute grid a first block of 4 with a tail of 1, 0 and 3 context tokens leaves room for 3, 4 and 1 tokens.
CASES = [("response", [8, 4, 12]), ("absolute", [7, 4, 9])]


@pytest.mark.parametrize(("grid", "lengths"), CASES)
def test_every_position_gets_its_own_step_and_target(grid, lengths):
    trajectories: list[Trajectory | None] = [trajectory(n) for n in lengths]
    on_grid = blocked(trajectories, [9, 12, 11], grid)
    labels = align(trajectories, on_grid, with_targets=True)
    tails = [1, 0, 3] if grid == "absolute" else [0, 0, 0]
    assert labels.block_size == 4
    for row, (one, tail) in enumerate(zip(trajectories, tails, strict=True)):
        place = list(range(tail, tail + len(one.token_R)))
        assert torch.equal(labels.token_BR[row, place], one.token_R)
        assert torch.equal(labels.commit_step_BR[row, place], one.commit_step_R)
        assert torch.equal(labels.target_BRV[row, place], one.target_RV)
        assert labels.supervised_BR[row].nonzero()[:, 0].tolist() == place
        assert int(labels.commit_step_BR[row].count_nonzero()) == len(place)


def test_a_dropped_trajectory_is_supervised_nowhere():
    trajectories = [trajectory(8), None]
    labels = align(trajectories, blocked(trajectories, [9, 12], "response"), with_targets=True)
    assert labels.supervised_BR[1].any().item() is False
    assert labels.supervised_BR[0].all().item() is True
    assert labels.token_BR[1].tolist() == [SPECIAL.eos] * 8


def test_nothing_usable_leaves_no_target():
    labels = align([None, None], blocked([None, None], [9, 12], "response"), with_targets=True)
    assert labels.target_BRV is None
    assert not labels.supervised_BR.any()


def test_missing_distributions_are_named():
    trajectories = [trajectory(8, distributions=False)]
    on_grid = blocked(trajectories, [9], "response")
    with pytest.raises(ValueError, match="the trajectory of study-8 has no distributions, and this objective needs them"):
        align(trajectories, on_grid, with_targets=True)
    assert align(trajectories, on_grid, with_targets=False).target_BRV is None
