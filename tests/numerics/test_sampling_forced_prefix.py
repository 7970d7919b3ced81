"""A teacher that completes a student's prefix, against phase 1 of docs/explain/method.md done the long way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from long_way import LIMIT, TAU, L, LongWay
from models import SPECIAL, decoding_vlm, make_batch, rows_of, stock_network
from torch import Tensor

from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.noise import sample_generator
from echo_pl.diffusion.top_targets import top_targets
from echo_pl.sampling import BlockSampler, DecodeConfig, TrajectoryRecorder
from echo_pl.sampling.forced_prefix import ForcedPrefix, prepend_prefix, sample_prefix_lengths
from echo_pl.structs import Batch, Trajectory

CONTEXTS = [9, 12, 11, 14]
E = SPECIAL.eos


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return decoding_vlm()


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch(CONTEXTS, [10, 7, 5, 6], seed=3, dtype=torch.float64)


def prefixes(grid: str, blocks: tuple[int, ...]) -> list[Tensor]:
    """Made-up tokens in whole blocks, behind the context tail of the absolute grid."""
    found = []
    for row, n in enumerate(blocks):
        tail = CONTEXTS[row] % L if grid == "absolute" else 0
        generator = torch.Generator().manual_seed(row)
        found.append(torch.randint(0, 90, (max(0, n * L - tail),), generator=generator))
    return found


@pytest.mark.parametrize("kv_cache", ["none", "vanilla", "fused"])
@pytest.mark.parametrize(("grid", "mode"), [("response", "causal"), ("absolute", "block_causal")])
def test_the_teacher_continues_forced_blocks(vlm, batch, grid, mode, kv_cache):
    blocks = (1, 0, 3, 2)
    begun = prefixes(grid, blocks)
    config = DecodeConfig(
        block_size=L, max_response_tokens=LIMIT, confidence_threshold=TAU, kv_cache=kv_cache, grid=grid, context_attention=mode
    )
    recorder = TrajectoryRecorder(distributions=True)
    result = BlockSampler(vlm, SPECIAL, config).generate(batch, recorder, prefix=ForcedPrefix.of(begun, blocks))
    network = stock_network(vlm)
    for row, trajectory in enumerate(recorder.trajectories(batch.keys)):
        long_way = LongWay(network, rows_of(batch, row), grid, mode, given=begun[row].tolist())
        long_way.run()
        assert trajectory.token_R.tolist() == long_way.token
        assert trajectory.commit_step_R.tolist() == long_way.step
        assert float((trajectory.target_RV - torch.stack(long_way.target)).abs().max()) < 1e-10
        whole = [*begun[row].tolist(), *long_way.token]
        assert result.tokens[row].tolist() == (whole[: whole.index(E)] if E in whole else whole)[:LIMIT]


def test_an_empty_prefix_is_a_plain_decode(vlm, batch):
    config = DecodeConfig(block_size=L, max_response_tokens=LIMIT, confidence_threshold=TAU)
    plain, none = TrajectoryRecorder(True), TrajectoryRecorder(True)
    BlockSampler(vlm, SPECIAL, config).generate(batch, plain)
    BlockSampler(vlm, SPECIAL, config).generate(
        batch, none, prefix=ForcedPrefix.of([torch.empty(0, dtype=torch.long)] * 4, [0] * 4)
    )
    for one, other in zip(plain.trajectories(batch.keys), none.trajectories(batch.keys), strict=True):
        assert torch.equal(one.token_R, other.token_R)
        assert torch.equal(one.target_RV, other.target_RV)


def trajectory(tokens: list[int]) -> Trajectory:
    R = len(tokens)
    return Trajectory(
        key="study", block_size=L, token_R=torch.tensor(tokens), commit_step_R=torch.ones(R, dtype=torch.long),
        confidence_R=torch.full((R,), 0.7), target_RV=torch.full((R, 5), 0.2),
    )  # fmt: skip


def draw(tokens: list[int], share: float = 1.0, tail: int = 0, number: int = 300) -> ForcedPrefix:
    written = [trajectory(tokens)] * number
    generators = [sample_generator(0, f"study-{n}", 0) for n in range(number)]
    return sample_prefix_lengths(written, torch.full((number,), tail), share, E, generators)


def test_a_prefix_ends_before_the_block_with_eos():
    tokens = [*range(10, 20), E, 21]  # eos in the third block
    given = draw(tokens)
    assert set(given.blocks_B.tolist()) == {1, 2}
    assert abs(float((given.blocks_B == 1).float().mean()) - 0.5) < 0.1
    for row in range(20):
        n = int(given.blocks_B[row])
        assert given.tokens(row, 0, L).tolist() == tokens[: n * L]


def test_a_prefix_after_a_context_tail_is_shorter_by_it():
    tokens = [*range(10, 19), E]  # with a tail of two: blocks of 2, 4 and 4 tokens, eos at the end of the third
    given = draw(tokens, tail=2)
    assert set(given.blocks_B.tolist()) == {1, 2}
    assert {tuple(given.tokens(row, 2, L).tolist()) for row in range(300)} == {tuple(tokens[:2]), tuple(tokens[:6])}


def test_without_eos_the_last_block_is_left_and_one_block_has_no_prefix():
    assert set(draw([*range(10, 22)]).blocks_B.tolist()) == {1, 2}
    assert set(draw([10, E, 12, 13]).blocks_B.tolist()) == {0}
    assert set(draw([10, 11, 12, 13]).blocks_B.tolist()) == {0}


def test_the_share_is_one_of_the_samples():
    tokens = [*range(10, 20), E, 21]
    assert abs(float((draw(tokens, share=0.3).blocks_B > 0).float().mean()) - 0.3) < 0.1
    assert int(draw(tokens, share=0.0).blocks_B.sum()) == 0


def test_forced_tokens_have_no_step_and_no_target():
    one = trajectory([20, 21, 22, E])
    whole = prepend_prefix(one, torch.tensor([10, 11, 12, 13]))
    assert whole.token_R.tolist() == [10, 11, 12, 13, 20, 21, 22, E]
    assert whole.commit_step_R.tolist() == [0] * 4 + [1] * 4
    assert float(whole.target_RV[:4].abs().sum()) == 0
    assert torch.equal(whole.target_RV[4:], one.target_RV)
    topped = replace(one, target_RV=None, top=top_targets(one.target_RV, 2))
    assert prepend_prefix(topped, torch.tensor([10, 11, 12, 13])).top.token_MK.shape == (8, 2)
    assert prepend_prefix(one, torch.empty(0, dtype=torch.long)) is one
