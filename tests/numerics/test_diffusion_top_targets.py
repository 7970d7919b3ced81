"""The loss from stored top tokens and their tail, beside the loss from whole distributions: written once more with loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from echo_pl.diffusion.losses import DistillationConfig, direct_conditional_loss, target_divergence
from echo_pl.diffusion.top_targets import temper_top, top_targets
from echo_pl.structs import TopTargets

M, V, EOS = 30, 23, 1


@pytest.fixture
def logits() -> Tensor:
    return (2 * torch.randn(M, V, generator=torch.Generator().manual_seed(0), dtype=torch.float32)).requires_grad_()


@pytest.fixture
def target() -> Tensor:
    """Peaked distributions, with three tokens that no decoder emits."""
    scores = 3 * torch.randn(M, V, generator=torch.Generator().manual_seed(1))
    return scores.index_fill(1, torch.tensor([4, 9, 20]), -torch.inf).softmax(-1)


def softmax(z: Tensor, temperature: float = 1.0) -> list[float]:
    weights = [math.exp(x / temperature) for x in z.tolist()]
    return [w / sum(weights) for w in weights]


def over_events(P: list[float], p: list[float], k: int) -> float:
    """sum over the k likeliest tokens, and one event for all the others."""
    order = sorted(range(len(P)), key=lambda v: -P[v])
    events = [(P[v], p[v]) for v in order[:k]]
    if k < len(P):
        events.append((sum(P[v] for v in order[k:]), sum(p[v] for v in order[k:])))
    return sum(a * math.log(a / b) for a, b in events if a > 0)


@pytest.mark.parametrize("k", [1, 2, 7, V - 1, V, V + 5])
def test_it_is_the_divergence_over_the_events(logits, target, k):
    found = target_divergence(logits, top_targets(target, k), DistillationConfig())
    expected = [over_events(target[i].tolist(), softmax(logits[i]), min(k, V)) for i in range(M)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_what_is_lost_is_the_divergence_within_the_tail(logits, target):
    whole = target_divergence(logits, target, DistillationConfig())
    for k in (1, 3, 10):
        top = top_targets(target, k)
        lost = whole - target_divergence(logits, top, DistillationConfig())
        for i in range(M):
            P, p = target[i].tolist(), softmax(logits[i])
            tail = [v for v in range(V) if v not in top.token_MK[i].tolist()]
            a, b = sum(P[v] for v in tail), sum(p[v] for v in tail)
            within = sum(P[v] / a * math.log((P[v] / a) / (p[v] / b)) for v in tail if P[v] > 0)
            assert float(lost[i].detach()) == pytest.approx(a * within, rel=1e-3, abs=2e-6)


def test_more_tokens_lose_less_and_never_gain(logits, target):
    losses = [float(target_divergence(logits, top_targets(target, k), DistillationConfig()).sum()) for k in range(1, V + 1)]
    assert losses == sorted(losses)
    assert losses[-1] == pytest.approx(float(target_divergence(logits, target, DistillationConfig()).sum()), rel=1e-6)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize(("temperature", "target_temperature"), [(1.0, 1.0), (2.0, 1.0), (1.0, 0.3)])
def test_with_all_tokens_kept_it_is_the_whole_loss(logits, target, divergence, temperature, target_temperature):
    config = DistillationConfig(divergence=divergence, temperature=temperature, target_temperature=target_temperature, ce_share=0.2)
    token, step = target.argmax(-1), torch.arange(M) % 4 + 1
    whole, parts = direct_conditional_loss(logits, target, token, step, EOS, config)
    kept, same = direct_conditional_loss(logits, top_targets(target, V), token, step, EOS, config)
    assert float(kept) == pytest.approx(float(whole), rel=1e-5)
    assert {name: float(value) for name, value in same.items()} == pytest.approx({n: float(v) for n, v in parts.items()}, rel=1e-5)
    assert torch.allclose(torch.autograd.grad(whole, logits)[0], torch.autograd.grad(kept, logits)[0], atol=1e-6)


def test_the_tail_is_moved_as_a_whole(logits, target):
    """A step keeps the proportions that the student has within the tail: the gradient there goes with its probabilities."""
    top = top_targets(target, 3)
    (gradient,) = torch.autograd.grad(target_divergence(logits, top, DistillationConfig()).sum(), logits)
    ratio = gradient / logits.softmax(-1)
    low = ratio.scatter(1, top.token_MK, torch.inf).amin(1)
    high = ratio.scatter(1, top.token_MK, -torch.inf).amax(1)
    assert torch.allclose(low, high, rtol=1e-3, atol=1e-5)


def test_a_tempered_tail_is_taken_as_spread_evenly():
    """Half the mass on one token; the tail of .2 over two others: powers by hand."""
    top = TopTargets(token_MK=torch.tensor([[3, 0]]), probability_MK=torch.tensor([[0.5, 0.3]]), tail_M=torch.tensor([0.2]))
    sharp = temper_top(top, 0.5, vocabulary=4)
    total = 0.25 + 0.09 + 2 * 0.01
    assert sharp.probability_MK[0].tolist() == pytest.approx([0.25 / total, 0.09 / total])
    assert float(sharp.tail_M) == pytest.approx(0.02 / total)
    assert temper_top(top, 1.0, vocabulary=4) is top


def test_nothing_to_keep_is_rejected(target):
    with pytest.raises(ValueError, match="the number of kept tokens must be positive, got 0"):
        top_targets(target, 0)


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("weight_norm", ["weights", "positions"])
def test_divergence_and_cross_entropy_are_mixed_row_by_row(logits, target, share, weight_norm):
    config = DistillationConfig(ce_share=share, eos_weight=0.0, weight_norm=weight_norm)
    token, step = target.argmax(-1), torch.arange(M) % 4 + 1
    loss, parts = direct_conditional_loss(logits, target, token, step, EOS, config)
    kl, ce, norm = 0.0, 0.0, 0.0
    for i in range(M):
        p, w = softmax(logits[i]), float(step[i])
        kl += w * over_events(target[i].tolist(), p, V)
        ce -= w * math.log(p[int(token[i])])
        norm += w if weight_norm == "weights" else 1.0
    assert float(loss) == pytest.approx(((1 - share) * kl + share * ce) / norm, rel=1e-4)
    assert float(parts["ce"]) == pytest.approx(ce / norm, rel=1e-4)
    assert float(parts["kl"]) == pytest.approx(kl / norm, rel=1e-4)


def test_without_a_share_there_is_no_cross_entropy(logits, target):
    _, parts = direct_conditional_loss(logits, target, target.argmax(-1), torch.ones(M), EOS, DistillationConfig())
    assert set(parts) == {"kl", "eos_ce"}
    with pytest.raises(ValueError, match=r"ce_share must be in \[0, 1\], got 1.5"):
        DistillationConfig(ce_share=1.5)
