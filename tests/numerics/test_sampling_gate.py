"""A confidence-gated second step: the blocks that take it, its exactness with a fused cache, and its cost in forwards."""

from __future__ import annotations

import pytest
import torch
from models import SPECIAL, decoding_vlm, make_batch
from pairwise import pairwise
from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.metrics.efficiency import Efficiency
from echo_pl.sampling import BlockSampler, DecodeConfig, TrajectoryRecorder
from echo_pl.sampling.config import TokenChoice
from echo_pl.sampling.remasking import choose_commits, predict
from echo_pl.structs import Batch, DecodeResult, Trajectory

L, LIMIT, GATE = 4, 20, 0.5
MODELS = ("stock", "one_piece")
LAYOUTS = (("response", "causal"), ("absolute", "block_causal"), ("absolute", "full"))


@pytest.fixture(scope="module", params=MODELS)
def vlm(request) -> VLM:
    return decoding_vlm().requires_grad_(request.param == "stock")


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch([9, 12, 11, 14], [10, 7, 5, 6], seed=3, dtype=torch.float64)


def decode(vlm: VLM, batch: Batch, **changes) -> tuple[DecodeResult, list[Trajectory]]:
    config = DecodeConfig(**{"block_size": L, "max_response_tokens": LIMIT, "denoising_steps": 1, "gate": GATE, **changes})
    recorder = TrajectoryRecorder(distributions=True)
    result = BlockSampler(vlm, SPECIAL, config).generate(batch, recorder)
    return result, recorder.trajectories(batch.keys)


@pytest.mark.parametrize(("vlm", "layout", "gate"), pairwise(MODELS, LAYOUTS, (0.2, GATE, 0.9, 1.0)), indirect=["vlm"])
def test_fused_is_vanilla_is_uncached_with_a_gate(vlm, batch, layout, gate):
    grid, mode = layout
    ways = [decode(vlm, batch, grid=grid, context_attention=mode, gate=gate, kv_cache=kv) for kv in ("none", "vanilla", "fused")]
    (uncached, first), *others = ways
    for result, trajectories in others:
        assert all(torch.equal(a, b) for a, b in zip(result.tokens, uncached.tokens, strict=True))
        assert torch.equal(result.nfe_B - result.kv_write_nfe_B, uncached.nfe_B)
        for one, other in zip(trajectories, first, strict=True):
            assert torch.equal(one.commit_step_R, other.commit_step_R)
            assert float((one.target_RV - other.target_RV).abs().max()) < 1e-10
    assert ways[2][0].kv_write_nfe_B.tolist() == [0] * len(batch)


def test_only_uncertain_blocks_take_a_second_step(vlm, batch):
    """Blocks whose least confidence in one step is below the gate, and no others."""
    result, trajectories = decode(vlm, batch)
    steps = torch.cat([t.commit_step_R.view(-1, L) for t in trajectories])
    confidence = torch.cat([t.confidence_R.view(-1, L) for t in trajectories])
    first = torch.where(steps == 1, confidence, torch.inf)
    second = steps.amax(1) == 2
    assert 0 < int(second.sum()) < len(steps), "the example must have both"
    assert set(steps.flatten().tolist()) == {1, 2}
    assert (first[~second].amin(1) >= GATE).all()
    # Positions of the first step are confident, or the most confident one of a block without any.
    alone = (steps == 1).sum(1) == 1
    assert (first[second & ~alone].amin(1) >= GATE).all()
    # Forwards: one per block, and one more for each unsure one.
    assert int(result.nfe_B.sum()) == len(steps) + int(second.sum())


def test_forwards_per_block_are_reported(vlm, batch):
    result, trajectories = decode(vlm, batch, kv_cache="vanilla")
    blocks = [t.commit_step_R.view(-1, L).amax(1) for t in trajectories]
    metric = Efficiency()
    metric.update([result])
    expected = float(torch.cat(blocks).float().mean())
    assert 1 < expected < 2
    assert metric.compute()["forwards_per_block"] == pytest.approx(expected)


def test_the_ends_of_the_gate(vlm, batch):
    """A gate that nothing falls below is one step; at 1 every block with a doubt takes two."""
    plain, _ = decode(vlm, batch, gate=0.0)
    loose, _ = decode(vlm, batch, gate=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(plain.tokens, loose.tokens, strict=True))
    assert torch.equal(plain.nfe_B, loose.nfe_B)
    strict, trajectories = decode(vlm, batch, gate=1.0)
    assert all(int(t.commit_step_R.view(-1, L).amax(1).min()) == 2 for t in trajectories)
    assert int(strict.nfe_B.sum()) > int(plain.nfe_B.sum())


def logits_with(confidences: list[float]) -> Tensor:
    p = torch.tensor(confidences)[:, None]
    return torch.cat([p, 1 - p], dim=1).log()[None]


@pytest.mark.parametrize(
    ("confidences", "masked", "first"),
    [
        ([0.95, 0.8, 0.99, 0.9], [1, 1, 1, 1], [1, 1, 1, 1]),  # all confident: one step
        ([0.95, 0.6, 0.99, 0.7], [1, 1, 1, 1], [1, 0, 1, 0]),
        ([0.55, 0.6, 0.65, 0.7], [1, 1, 1, 1], [0, 0, 0, 1]),  # none is confident: the most confident one
        ([0.95, 0.6, 0.55, 0.7], [0, 1, 1, 1], [0, 0, 0, 1]),  # a context tail is not masked
    ],
)
def test_the_first_step_commits_confident_positions(confidences, masked, first):
    config = DecodeConfig(block_size=4, max_response_tokens=4, denoising_steps=1, gate=0.8)
    now, then = config.step_configs
    prediction = predict(logits_with(confidences), torch.empty(0, dtype=torch.long), TokenChoice(), None)
    is_masked_AL = torch.tensor([masked]).bool()
    committed = choose_commits(prediction, is_masked_AL, now)
    assert committed.int().tolist() == [first]
    left = is_masked_AL & ~committed
    assert torch.equal(choose_commits(prediction, left, then), left)


def test_a_gate_is_for_one_step():
    with pytest.raises(ValueError, match=r"gate=0.5 is a second step for one-step decoding: it needs denoising_steps=1, got None"):
        DecodeConfig(block_size=4, max_response_tokens=8, gate=0.5)
    with pytest.raises(ValueError, match=r"gate must be in \[0, 1\], got 1.5"):
        DecodeConfig(block_size=4, max_response_tokens=8, denoising_steps=1, gate=1.5)
    off = DecodeConfig(block_size=4, max_response_tokens=8, denoising_steps=1)
    assert (off.steps, off.quota, off.commits_vary, off.step_configs) == (1, 4, False, (off,))
