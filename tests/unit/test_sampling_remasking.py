"""Commit rules and token choice against plain loops over one block (docs/explain/method.md)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from echo_pl.sampling.config import DecodeConfig, TokenChoice
from echo_pl.sampling.remasking import choose_commits, first_largest, predict

A, L, V = 40, 8, 12
NEVER = torch.tensor([0, 5])


@pytest.fixture(scope="module")
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sharpness = 6 * torch.rand(A, L, 1, generator=generator)
    return sharpness * torch.randn(A, L, V, generator=generator)


@pytest.fixture(scope="module")
def is_masked_AL() -> Tensor:
    is_open = torch.rand(A, L, generator=torch.Generator().manual_seed(1)) < 0.6
    is_open[0] = True
    is_open[1] = False
    return is_open


def config(**options) -> DecodeConfig:
    return DecodeConfig(**{"block_size": L, "max_response_tokens": L, "confidence_threshold": 0.7, **options})


def commits(logits: Tensor, is_masked_AL: Tensor, decode: DecodeConfig) -> list[set[int]]:
    prediction = predict(logits, NEVER, TokenChoice(), None)
    chosen = choose_commits(
        prediction, is_masked_AL, decode, torch.rand(is_masked_AL.shape, generator=torch.Generator().manual_seed(0))
    )
    return [set(row.nonzero()[:, 0].tolist()) for row in chosen]


def probabilities(row: Tensor) -> list[float]:
    """Softmax without the tokens that are never sampled."""
    powers = [0.0 if v in NEVER.tolist() else math.exp(float(x)) for v, x in enumerate(row.double())]
    return [p / sum(powers) for p in powers]


def expected(logits: Tensor, is_masked_AL: Tensor, remasking: str, quota: int, tau: float, bound: float) -> list[set[int]]:
    """docs/explain/method.md, one position at a time."""
    out = []
    for sample, is_open in zip(logits, is_masked_AL.tolist(), strict=True):
        U = [i for i in range(L) if is_open[i]]
        p = {i: probabilities(sample[i]) for i in U}
        sure = sorted(U, key=lambda i: -max(p[i]))
        if remasking == "sequential":
            chosen = set(U[:quota])
        elif remasking == "low_confidence_static":
            chosen = set(sure[:quota])
        elif remasking == "low_confidence_dynamic":
            chosen = {i for i in U if max(p[i]) >= tau} | set(sure[:quota])
        else:
            entropy = {i: -sum(x * math.log(x) for x in p[i] if x > 0) for i in U}
            chosen, spent = set(), 0.0
            for rank, i in enumerate(sorted(U, key=lambda i: entropy[i])):
                # The entropies of those before, without the last one taken, are what bounds the joint error.
                if rank < quota or spent <= bound:
                    chosen.add(i)
                spent += entropy[i]
        out.append(chosen)
    return out


@pytest.mark.parametrize("steps", [2, 3, 4, None])
@pytest.mark.parametrize("remasking", ["low_confidence_dynamic", "low_confidence_static", "sequential", "entropy_bounded"])
def test_commit_rules_are_those_of_the_method(logits, is_masked_AL, remasking, steps):
    decode = config(remasking=remasking, denoising_steps=steps, entropy_bound=0.8)
    quota = math.ceil(L / (steps or L))
    assert commits(logits, is_masked_AL, decode) == expected(logits, is_masked_AL, remasking, quota, 0.7, 0.8)


def test_the_random_rule_follows_the_given_order(logits, is_masked_AL):
    order = torch.rand(A, L, generator=torch.Generator().manual_seed(3))
    prediction = predict(logits, NEVER, TokenChoice(), None)
    chosen = choose_commits(prediction, is_masked_AL, config(remasking="random", denoising_steps=4), order)
    for a in range(A):
        U = [i for i in range(L) if is_masked_AL[a, i]]
        assert set(chosen[a].nonzero()[:, 0].tolist()) == set(sorted(U, key=lambda i: -float(order[a, i]))[:2])


@pytest.mark.parametrize(
    "remasking", ["low_confidence_dynamic", "low_confidence_static", "sequential", "entropy_bounded", "random"]
)
def test_one_step_commits_the_whole_block(logits, is_masked_AL, remasking):
    chosen = commits(logits, is_masked_AL, config(remasking=remasking, denoising_steps=1))
    assert chosen == [{i for i in range(L) if row[i]} for row in is_masked_AL.tolist()]


def test_equal_confidences_go_left_to_right():
    even = torch.zeros(A, L, V)
    decode = config(remasking="low_confidence_static", denoising_steps=4)
    assert commits(even, torch.ones(A, L, dtype=torch.bool), decode) == [{0, 1}] * A


def test_the_confidence_is_the_largest_probability_among_tokens_that_may_be_sampled(logits):
    prediction = predict(logits, NEVER, TokenChoice(), None)
    for a in (0, 7):
        for i in range(L):
            p = probabilities(logits[a, i])
            assert float(prediction.confidence_AL[a, i]) == pytest.approx(max(p), rel=1e-5)
            assert int(prediction.token_AL[a, i]) == p.index(max(p))
            assert prediction.log_probs_ALV[a, i].exp().tolist() == pytest.approx(p, abs=1e-6)


def frequencies(choice: TokenChoice, row: Tensor, draws: int = 4000) -> list[float]:
    logits = row.repeat(draws, 1, 1)
    tokens = predict(logits, NEVER, choice, torch.Generator().manual_seed(choice.seed)).token_AL
    return (torch.bincount(tokens.flatten(), minlength=V) / draws).tolist()


def test_temperature_is_for_the_token_and_never_for_the_confidence(logits):
    """Draws follow softmax(z / T); four standard errors of 4000 draws are 0.032 at most."""
    row = logits[2, 3]
    hot = frequencies(TokenChoice(temperature=2.5), row)
    assert hot == pytest.approx(probabilities(row / 2.5), abs=0.032)
    drawn = predict(logits, NEVER, TokenChoice(temperature=2.5), torch.Generator().manual_seed(0))
    own = drawn.log_probs_ALV.exp().gather(-1, drawn.token_AL[..., None])[..., 0]
    assert torch.allclose(drawn.confidence_AL, own)
    assert torch.equal(drawn.log_probs_ALV, predict(logits, NEVER, TokenChoice(), None).log_probs_ALV)


def test_top_k_keeps_the_likeliest(logits):
    row = logits[2, 3]
    p = probabilities(row)
    best = sorted(range(V), key=lambda v: -p[v])[:3]
    kept = [x if v in best else 0.0 for v, x in enumerate(p)]
    expected = [x / sum(kept) for x in kept]
    assert frequencies(TokenChoice(temperature=1.0, top_k=3), row) == pytest.approx(expected, abs=0.032)


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.9])
def test_top_p_keeps_the_smallest_set_with_that_mass(logits, top_p):
    row = logits[5, 1] / 2
    p = probabilities(row)
    kept, mass = [0.0] * V, 0.0
    for v in sorted(range(V), key=lambda v: -p[v]):
        if mass >= top_p:
            break
        kept[v] = p[v]
        mass += p[v]
    expected = [x / sum(kept) for x in kept]
    assert frequencies(TokenChoice(temperature=1.0, top_p=top_p), row) == pytest.approx(expected, abs=0.032)


@pytest.mark.parametrize("options", [{}, {"top_k": 9}, {"top_k": 100}, {"top_p": 0.999}])
def test_never_sampled_tokens_are_never_chosen(options):
    pushed = torch.zeros(1, 1, V)
    pushed[..., NEVER] = 1e4
    for temperature in (0.0, 0.5, 50.0):
        frequency = frequencies(TokenChoice(temperature=temperature, **options), pushed[0, 0], draws=500)
        assert sum(frequency[v] for v in NEVER.tolist()) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [12, 8192, 151936, 152064, 8209], ids=["small", "power", "0.5B", "7B", "prime"])
def test_the_first_of_the_largest_logits_is_taken(vocabulary, dtype):
    """In bfloat16 a large vocabulary has many equal ones."""
    logits = torch.randn(3, 2, vocabulary, generator=torch.Generator().manual_seed(2)).to(dtype)
    logits[0, 0, vocabulary // 2 :: 5] = 100.0
    logits[1, 1] = -torch.inf
    logits[1, 1, vocabulary - 1] = 0.0
    expected = [[row.tolist().index(max(row.tolist())) for row in sample] for sample in logits]
    assert first_largest(logits).tolist() == expected
