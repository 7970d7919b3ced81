"""No decoder emits mask, pad or another control token, even where the model wants nothing else."""

from __future__ import annotations

import pytest
import torch
from models import SPECIAL, make_batch, small_vlm

from echo_pl.backbone.vlm import VLM
from echo_pl.sampling import AutoregressiveSampler, BlockSampler, DecodeConfig, TokenChoice, TrajectoryRecorder
from echo_pl.structs import Batch

NEVER = set(SPECIAL.never_sampled)
CHOICES = [
    TokenChoice(),
    TokenChoice(temperature=1.0),
    TokenChoice(temperature=100.0, top_k=5),
    TokenChoice(temperature=1.0, top_p=0.5),
]


@pytest.fixture(scope="module")
def pushed() -> VLM:
    """A model whose largest logits, by far, are those of the tokens that no decoder may emit."""
    vlm = small_vlm()
    head = vlm.network.lm_head
    bias = torch.zeros(head.out_features)
    bias[list(NEVER)] = 1e4
    head.bias = torch.nn.Parameter(bias)
    return vlm


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch([9, 12], [4, 4])


def check(tokens: tuple[torch.Tensor, ...], recorder: TrajectoryRecorder, batch: Batch) -> None:
    assert sum(len(t) for t in tokens) > 0
    assert not NEVER & {int(token) for t in tokens for token in t}
    for trajectory in recorder.trajectories(batch.keys):
        assert not NEVER & set(trajectory.token_R.tolist())
        assert float(trajectory.target_RV[:, list(NEVER)].max()) == 0.0
        assert float((trajectory.target_RV.sum(-1) - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("kv_cache", "steps"), [("none", 2), ("vanilla", 1), ("fused", 1), ("fused", 4)])
def test_block_sampler(pushed, batch, kv_cache, steps, choice):
    config = DecodeConfig(block_size=4, max_response_tokens=12, denoising_steps=steps, kv_cache=kv_cache, token_choice=choice)
    recorder = TrajectoryRecorder(distributions=True)
    result = BlockSampler(pushed, SPECIAL, config).generate(batch, recorder)
    check(result.tokens, recorder, batch)


@pytest.mark.parametrize("choice", CHOICES)
def test_autoregressive_sampler(pushed, batch, choice):
    recorder = TrajectoryRecorder(distributions=True)
    result = AutoregressiveSampler(pushed, SPECIAL, 12, token_choice=choice).generate(batch, recorder)
    check(result.tokens, recorder, batch)
