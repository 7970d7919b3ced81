"""Equal decodes: without a cache, with a vanilla and a fused block cache, in a batch and alone.

float64 with norms in float64: tokens are equal, distributions agree to 1e-10. A batch shares forwards only, so a sample has the
same counts as alone. Parameters are combined pairwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from flash_stand_in import flash_on_cpu  # noqa: F401
from models import SPECIAL, decoding_vlm, make_batch, rows_of
from pairwise import pairwise

from echo_pl.backbone.attention import AttentionBackend
from echo_pl.backbone.vlm import VLM
from echo_pl.sampling import BlockSampler, DecodeConfig, TokenChoice, TrajectoryRecorder
from echo_pl.structs import Batch, DecodeResult, Trajectory

L, LIMIT = 4, 20
CONTEXTS = [9, 12, 11, 14]
MODELS = ("stock", "one_piece")
GRIDS, MODES = ("response", "absolute"), ("causal", "block_causal", "full")
RULES = ("low_confidence_dynamic", "low_confidence_static", "sequential", "entropy_bounded", "random")


@dataclass(frozen=True)
class Decoded:
    result: DecodeResult
    trajectories: list[Trajectory]


@pytest.fixture(scope="module", params=MODELS)
def vlm(request) -> VLM:
    """A model in training decodes through the stock class, a frozen one through the text decoder."""
    return decoding_vlm().requires_grad_(request.param == "stock")


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch(CONTEXTS, [10, 7, 5, 6], seed=3, dtype=torch.float64)


def config(**changes) -> DecodeConfig:
    return DecodeConfig(**{"block_size": L, "max_response_tokens": LIMIT, "confidence_threshold": 0.5, **changes})


def decode(vlm: VLM, batch: Batch, **changes) -> Decoded:
    recorder = TrajectoryRecorder(distributions=True)
    result = BlockSampler(vlm, SPECIAL, config(**changes)).generate(batch, recorder)
    return Decoded(result, recorder.trajectories(batch.keys))


def blocks_of(result: DecodeResult, grid: str) -> torch.Tensor:
    """Blocks each sample decoded; on the absolute grid the first one also holds the last P mod L context tokens."""
    tail = torch.tensor([p % L if grid == "absolute" else 0 for p in CONTEXTS])
    return -(-(result.written_B + tail) // L)


def assert_same(one: Decoded, other: Decoded) -> None:
    for a, b in zip(one.result.tokens, other.result.tokens, strict=True):
        assert torch.equal(a, b)
    for name in ("stopped_B", "looped_B", "written_B"):
        assert torch.equal(getattr(one.result, name), getattr(other.result, name)), name
    for a, b in zip(one.trajectories, other.trajectories, strict=True):
        assert torch.equal(a.token_R, b.token_R)
        assert torch.equal(a.commit_step_R, b.commit_step_R)
        assert float((a.target_RV - b.target_RV).abs().max()) < 1e-10


def test_the_example_is_not_trivial(vlm, batch):
    """Some stop and some do not, at different blocks, and blocks take between one step and L."""
    decoded = decode(vlm, batch)
    assert 0 < int(decoded.result.stopped_B.sum()) < len(batch)
    assert len(set(blocks_of(decoded.result, "response").tolist())) > 1
    steps = {int(step) for t in decoded.trajectories for step in t.commit_step_R.view(-1, L).amax(1)}
    assert len(steps) > 2


@pytest.mark.parametrize(
    ("vlm", "grid", "mode", "remasking", "steps"), pairwise(MODELS, GRIDS, MODES, RULES, (1, 2, L)), indirect=["vlm"]
)
def test_cached_is_uncached_and_fused_is_vanilla(vlm, batch, grid, mode, remasking, steps):
    way = {"grid": grid, "context_attention": mode, "remasking": remasking, "denoising_steps": steps}
    uncached, vanilla, fused = (decode(vlm, batch, kv_cache=kv, **way) for kv in ("none", "vanilla", "fused"))
    assert_same(vanilla, uncached)
    assert_same(fused, vanilla)

    # A fused cache needs no forward for its writes, a vanilla one needs one for each block but the last.
    N = blocks_of(fused.result, grid)
    assert torch.equal(fused.result.nfe_B, uncached.result.nfe_B)
    assert torch.equal(fused.result.nfe_B, vanilla.result.nfe_B - (N - 1))
    assert torch.equal(vanilla.result.kv_write_nfe_B, N - 1)
    assert fused.result.kv_write_nfe_B.tolist() == [0] * len(batch)
    if steps == 1:
        assert torch.equal(fused.result.nfe_B, N)
        assert torch.equal(vanilla.result.nfe_B, 2 * N - 1)
    else:
        rounds = [t.commit_step_R for t in fused.trajectories]
        assert int(fused.result.nfe_B.max()) <= int(N.max()) * steps
        assert all(int(r.max()) <= steps for r in rounds)


@pytest.mark.slow
@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("vlm", "grid", "mode", "attention"), pairwise(MODELS, GRIDS, MODES, get_args(AttentionBackend)), indirect=["vlm"]
)
def test_every_attention_backend_decodes_the_same(monkeypatch, vlm, batch, grid, mode, attention):
    way = {"grid": grid, "context_attention": mode, "denoising_steps": 2}
    uncached = decode(vlm, batch, kv_cache="none", **way)
    monkeypatch.setattr(vlm, "decode_attention", attention)
    for kv_cache in ("vanilla", "fused"):
        assert_same(decode(vlm, batch, kv_cache=kv_cache, **way), uncached)


@pytest.mark.parametrize(
    ("vlm", "grid", "remasking", "kv_cache"), pairwise(MODELS, GRIDS, RULES, ("none", "vanilla", "fused")), indirect=["vlm"]
)
def test_a_batch_is_its_samples_one_at_a_time(vlm, batch, grid, remasking, kv_cache):
    way = {"grid": grid, "remasking": remasking, "kv_cache": kv_cache}
    together = decode(vlm, batch, **way)
    for row in range(len(batch)):
        alone = decode(vlm, rows_of(batch, row), **way)
        one = together.result
        assert torch.equal(one.tokens[row], alone.result.tokens[0])
        for name in ("stopped_B", "looped_B", "nfe_B", "kv_write_nfe_B", "written_B"):
            assert int(getattr(one, name)[row]) == int(getattr(alone.result, name)[0]), name
        assert alone.result.forwards == int(alone.result.nfe_B[0])
        a, b = together.trajectories[row], alone.trajectories[0]
        assert torch.equal(a.commit_step_R, b.commit_step_R)
        assert float((a.target_RV - b.target_RV).abs().max()) < 1e-10


@pytest.mark.parametrize("remasking", ["low_confidence_dynamic", "random"])
def test_sampled_tokens_do_not_depend_on_the_cache(vlm, batch, remasking):
    choice = TokenChoice(temperature=1.3, top_k=40, top_p=0.95, seed=7)
    ways = [
        decode(vlm, batch, kv_cache=kv, remasking=remasking, denoising_steps=2, token_choice=choice)
        for kv in ("none", "vanilla", "fused")
    ]
    assert_same(ways[0], ways[1])
    assert_same(ways[1], ways[2])
    greedy = decode(vlm, batch, remasking=remasking, denoising_steps=2)
    assert any(not torch.equal(a, b) for a, b in zip(ways[0].result.tokens, greedy.result.tokens, strict=True))


def test_finished_samples_leave_the_forwards(vlm, batch):
    widths = []
    hook = vlm.network.lm_head.register_forward_pre_hook(lambda _, inputs: widths.append(len(inputs[0])))
    try:
        result = decode(vlm, batch, denoising_steps=1).result
    finally:
        hook.remove()
    assert result.forwards == len(widths) - 1
    expected = [sum(n > forward for n in result.nfe_B.tolist()) for forward in range(result.forwards)]
    assert widths[1:] == expected
    assert widths[-1] < len(batch)


def test_decoding_does_not_change_the_random_state(vlm, batch):
    before = torch.get_rng_state()
    decode(vlm, batch, remasking="random", token_choice=TokenChoice(temperature=1.0))
    assert torch.equal(torch.get_rng_state(), before)
