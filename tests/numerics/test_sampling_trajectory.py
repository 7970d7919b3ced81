"""A recorded trajectory against docs/explain/method.md, phase 1, done the long way.

See ``tests/long_way.py``. float64 with norms in float64.
"""

from __future__ import annotations

import pytest
import torch
from long_way import LIMIT, TAU, L, LongWay
from models import SPECIAL, decoding_vlm, make_batch, rows_of, stock_network
from transformers import Qwen2_5_VLForConditionalGeneration

from echo_pl.backbone.vlm import VLM
from echo_pl.sampling import BlockSampler, DecodeConfig, TrajectoryRecorder
from echo_pl.structs import Batch, Trajectory


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return decoding_vlm()


@pytest.fixture(scope="module")
def network(vlm) -> Qwen2_5_VLForConditionalGeneration:
    return stock_network(vlm)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch([9, 12, 11, 14], [10, 7, 5, 6], seed=3, dtype=torch.float64)


def record(vlm: VLM, batch: Batch, grid: str, context_attention: str, kv_cache: str) -> list[Trajectory]:
    config = DecodeConfig(
        block_size=L,
        max_response_tokens=LIMIT,
        confidence_threshold=TAU,
        kv_cache=kv_cache,
        grid=grid,
        context_attention=context_attention,
    )
    recorder = TrajectoryRecorder(distributions=True)
    BlockSampler(vlm, SPECIAL, config).generate(batch, recorder)
    return recorder.trajectories(batch.keys)


@pytest.mark.parametrize("kv_cache", ["vanilla", "fused"])
@pytest.mark.parametrize(("grid", "mode"), [("response", "causal"), ("response", "full"), ("absolute", "block_causal")])
def test_stitched_targets_are_those_of_the_long_way(vlm, network, batch, grid, mode, kv_cache):
    trajectories = record(vlm, batch, grid, mode, kv_cache)
    rounds = set()
    for row, trajectory in enumerate(trajectories):
        long_way = LongWay(network, rows_of(batch, row), grid, mode)
        long_way.run()
        assert trajectory.key == batch.keys[row]
        assert trajectory.token_R.tolist() == long_way.token
        assert trajectory.commit_step_R.tolist() == long_way.step
        assert float((trajectory.target_RV - torch.stack(long_way.target)).abs().max()) < 1e-10
        # Confidences are kept in float32.
        assert trajectory.confidence_R.tolist() == pytest.approx(long_way.confidence, rel=1e-6)
        rounds |= set(long_way.step)
    assert len(rounds) > 2, "the example must take several steps per block"


def test_without_distributions_everything_else_is_the_same(vlm, batch):
    recorder = TrajectoryRecorder(distributions=False)
    config = DecodeConfig(block_size=L, max_response_tokens=LIMIT, confidence_threshold=TAU)
    BlockSampler(vlm, SPECIAL, config).generate(batch, recorder)
    with_targets = record(vlm, batch, "response", "causal", "fused")
    for one, other in zip(recorder.trajectories(batch.keys), with_targets, strict=True):
        assert one.target_RV is None
        assert torch.equal(one.token_R, other.token_R)
        assert torch.equal(one.commit_step_R, other.commit_step_R)
        assert torch.equal(one.confidence_R, other.confidence_R)


def test_trajectories_cover_whole_blocks_up_to_the_first_eos(vlm, batch):
    trajectories = record(vlm, batch, "response", "causal", "fused")
    ends = set()
    for trajectory in trajectories:
        eos = (trajectory.token_R == SPECIAL.eos).nonzero()
        blocks, rest = divmod(len(trajectory.token_R), L)
        assert trajectory.block_size == L
        assert rest == 0
        assert blocks == (int(eos[0, 0]) // L + 1 if len(eos) else LIMIT // L)
        assert float(trajectory.target_RV[:, list(SPECIAL.never_sampled)].abs().max()) == 0.0
        assert float((trajectory.target_RV.sum(-1) - 1).abs().max()) < 1e-12
        ends.add(len(eos) > 0)
    assert ends == {True, False}


def test_reading_before_recording_raises():
    with pytest.raises(ValueError, match="nothing was recorded for sample study-0"):
        TrajectoryRecorder().trajectories(["study-0"])
