"""A recorded trajectory against METHOD.md 3, phase 1, done the long way.

The teacher's distribution is computed for every step by a full forward of the library's own network over
``[context | finished blocks | current block]`` under the table of ``tests/method.py``, with the committed tokens put in; the loop
around it is the method's text. float64 with norms in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from method import allowed_QK, context_tokens, response_tokens
from models import SPECIAL, decoding_vlm, make_batch, rows_of, stock_network
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from echo_pl.backbone.vlm import VLM
from echo_pl.sampling import BlockSampler, DecodeConfig, TrajectoryRecorder
from echo_pl.structs import Batch, Trajectory

L, LIMIT, TAU = 4, 16, 0.5


@dataclass
class LongWay:
    """Algorithm 1, phase 1, for one sample."""

    network: Qwen2_5_VLForConditionalGeneration
    sample: Batch
    grid: str
    context_attention: str

    def __post_init__(self) -> None:
        ids = self.sample.context_ids_BP
        tail = ids.shape[1] % L if self.grid == "absolute" else 0
        self.context = ids[:, : ids.shape[1] - tail]
        self.canvas = [int(token) for token in ids[0, ids.shape[1] - tail :]]
        self.token: list[int] = []
        self.step: list[int] = []
        self.confidence: list[float] = []
        self.target: list[Tensor] = []

    def run(self) -> None:
        while len(self.token) < LIMIT:
            self.block()
            if SPECIAL.eos in self.token:
                return

    def block(self) -> None:
        start = len(self.canvas) // L * L
        first = len(self.canvas) - start  # the context tail, which is not open
        canvas = self.canvas[start:] + [SPECIAL.mask] * (L - first)
        U, s = set(range(first, L)), 1
        commit: dict[int, int] = {}
        target: dict[int, Tensor] = {}
        while U:
            p = self.distributions(self.canvas[:start], canvas)
            confidence = {i: float(p[i].max()) for i in U}
            committed = {i for i in U if confidence[i] >= TAU} or {max(sorted(U), key=lambda i: confidence[i])}
            for i in committed:
                target[i], commit[i], canvas[i] = p[i], s, int(p[i].argmax())
            U -= committed
            s += 1
        self.canvas = self.canvas[:start] + canvas
        for i in range(first, L):
            self.token.append(canvas[i])
            self.step.append(commit[i])
            self.target.append(target[i])
            self.confidence.append(float(target[i].max()))

    @torch.no_grad()
    def distributions(self, finished: list[int], canvas: list[int]) -> Tensor:
        """Softmax at the L places of the current block; tokens that no decoder may emit have no probability."""
        P = self.context.shape[1]
        tokens = context_tokens(P, P, L) + response_tokens("x0", len(finished), L)
        tokens += response_tokens("xt", len(finished) + L, L)[len(finished) :]
        is_image = (self.context == SPECIAL.image).int()
        positions, _ = self.network.model.get_rope_index(
            self.context, mm_token_type_ids=is_image, image_grid_thw=self.sample.image_grid_thw
        )
        behind = int(positions.max()) + 1
        response = torch.arange(behind, behind + len(finished) + L).expand(3, 1, -1)
        logits = self.network(
            input_ids=torch.cat([self.context, torch.tensor([finished + canvas])], dim=1),
            position_ids=torch.cat([positions, response], dim=2),
            attention_mask={"full_attention": allowed_QK(tokens, tokens, self.context_attention)[None, None]},
            pixel_values=self.sample.pixel_values,
            image_grid_thw=self.sample.image_grid_thw,
            use_cache=False,
        ).logits[0, -L:]
        logits[:, list(SPECIAL.never_sampled)] = -torch.inf
        return logits.softmax(-1)


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


def test_reading_before_recording_is_refused():
    with pytest.raises(ValueError, match="nothing was recorded for sample study-0"):
        TrajectoryRecorder().trajectories(["study-0"])
