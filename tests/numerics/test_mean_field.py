"""The mean-field gap: on hand-made numbers, in a distribution that can be written down, and of a model by brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from long_way import LIMIT, TAU, L, LongWay
from models import SPECIAL, TEXT, decoding_vlm, make_batch, rows_of, small_vlm, stock_network
from stage_parts import dcd

from echo_pl.diffusion.mean_field import mean_field_gaps, one_step_log_probs
from echo_pl.diffusion.objectives import SequenceLevel
from echo_pl.sampling import BlockSampler, DecodeConfig, TrajectoryRecorder
from echo_pl.structs import Trajectory


def test_gaps_are_sums_over_blocks():
    chain = torch.tensor([-0.5, -1.0, 0.0, -2.0, -0.25])
    one_step = torch.tensor([-0.5, -3.0, -0.5, -1.0, -0.75])
    assert mean_field_gaps(chain, one_step, torch.tensor([7, 7, 2, 2, 9])).tolist() == pytest.approx([-0.5, 2.0, 0.5])
    assert mean_field_gaps(chain[:0], one_step[:0], torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_its_mean_over_the_chain_is_the_divergence_from_independence():
    """Two tokens that are always equal, 0 with probability .25: the gap's mean is their mutual information, here their entropy."""
    p = {0: 0.25, 1: 0.75}
    mean = 0.0
    for share in p.values():
        chain = torch.tensor([share, 1.0]).log()  # the second follows from the first
        one_step = torch.tensor([share, share]).log()
        mean += share * float(mean_field_gaps(chain, one_step, torch.tensor([0, 0])))
    assert mean == pytest.approx(-sum(q * math.log(q) for q in p.values()))


def test_tokens_that_no_decoder_emits_have_no_part():
    logits = torch.tensor([[0.0, 1.0, 5.0, 2.0]])
    found = one_step_log_probs(logits, torch.tensor([1]), never_sampled=[2])
    assert float(found) == pytest.approx(1 - math.log(1 + math.e + math.e**2))


@pytest.mark.parametrize(("grid", "mode"), [("response", "causal"), ("absolute", "block_causal")])
def test_the_gap_of_a_model_is_that_of_the_long_way(grid, mode):
    """Chain and one step both by full forwards of the library's network, a block at a time; student and teacher differ."""
    teacher, student = decoding_vlm(), small_vlm(torch.float64, seed=5, sharp=8.0)
    batch = make_batch([9, 12, 11, 14], [10, 7, 5, 6], seed=3, dtype=torch.float64)
    config = DecodeConfig(block_size=L, max_response_tokens=LIMIT, confidence_threshold=TAU, grid=grid, context_attention=mode)
    recorder = TrajectoryRecorder()
    BlockSampler(teacher, SPECIAL, config).generate(batch, recorder)
    trajectories: list[Trajectory | None] = list(recorder.trajectories(batch.keys))
    trajectories[1] = None  # dropped: no part in anything
    stage = dcd(TEXT, Path("teacher.ckpt"), decode=config, objective=SequenceLevel())
    for vlm, one_step_network in ((teacher, stock_network(teacher)), (student, stock_network(student))):
        expected = []
        for row in (0, 2, 3):
            long_way = LongWay(stock_network(teacher), rows_of(batch, row), grid, mode)
            expected += brute_force(long_way, one_step_network)
        found = stage.mean_field_gaps(vlm, batch, trajectories)
        assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert max(expected) > 0.5, "there must be a gap to find"


def brute_force(long_way: LongWay, one_step_network) -> list[float]:
    """Block by block: log p along the chain, less the sum of log p with all of the block masked."""
    gaps = []
    one_step = replace(long_way, network=one_step_network)
    while len(long_way.token) < LIMIT and SPECIAL.eos not in long_way.token:
        start, first = len(long_way.canvas) // L * L, len(long_way.canvas) % L
        masked = long_way.canvas[start:] + [SPECIAL.mask] * (L - first)
        p = one_step.distributions(long_way.canvas[:start], masked)
        before = len(long_way.token)
        long_way.block()
        tokens = long_way.token[before:]
        chain = sum(math.log(c) for c in long_way.confidence[before:])
        gaps.append(chain - sum(math.log(float(p[first + i, token])) for i, token in enumerate(tokens)))
    return gaps


def test_a_teacher_that_commits_whole_blocks_has_no_gap():
    teacher = small_vlm(sharp=20.0).requires_grad_(False)
    batch = make_batch([11, 14], [5, 5])
    config = DecodeConfig(block_size=L, max_response_tokens=LIMIT, denoising_steps=1)
    recorder = TrajectoryRecorder()
    BlockSampler(teacher, SPECIAL, config).generate(batch, recorder)
    stage = dcd(TEXT, Path("teacher.ckpt"), decode=config, objective=SequenceLevel())
    gaps = stage.mean_field_gaps(teacher, batch, recorder.trajectories(batch.keys))
    assert len(gaps) > 1
    assert float(gaps.abs().max()) < 1e-3
