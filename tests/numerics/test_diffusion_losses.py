"""Losses against their definitions, written in plain Python floats from docs/explain/method.md.

Tolerance: the losses compute in float32, so 1e-5 relative, some hundred roundings of 6e-8.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from echo_pl.diffusion.losses import (
    DistillationConfig,
    direct_conditional_loss,
    masked_diffusion_loss,
    next_token_loss,
    pseudo_label_loss,
)

M, V, EOS = 12, 7, 3
REL = 1e-5


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    top = max(row)
    powers = [math.exp((x - top) / temperature) for x in row]
    return [p / sum(powers) for p in powers]


def cross_entropies(logits: Tensor, tokens: Tensor) -> list[float]:
    return [-math.log(softmax(row)[token]) for row, token in zip(logits.tolist(), tokens.tolist(), strict=True)]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.fixture(scope="module")
def logits() -> Tensor:
    return 2 * torch.randn(M, V, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.tensor([0, 1, EOS, 2, 4, EOS, EOS, 5, 6, 1, 0, 2])


@pytest.fixture(scope="module")
def steps() -> Tensor:
    return torch.tensor([1, 1, 2, 3, 1, 4, 2, 1, 3, 2, 1, 8])


@pytest.fixture(scope="module")
def target() -> Tensor:
    probabilities = torch.rand(M, V, generator=torch.Generator().manual_seed(1))
    probabilities[:, 6] = 0.0  # ids that are never sampled have no probability
    return probabilities / probabilities.sum(-1, keepdim=True)


def test_next_token_loss_is_the_mean_cross_entropy(logits, tokens):
    rows = cross_entropies(logits, tokens)
    assert float(next_token_loss(logits, tokens)) == pytest.approx(sum(rows) / M, rel=REL)


def test_pseudo_label_loss_is_the_mean_cross_entropy(logits, tokens):
    rows = cross_entropies(logits, tokens)
    assert float(pseudo_label_loss(logits, tokens)) == pytest.approx(sum(rows) / M, rel=REL)


def test_elbo_weighs_by_one_over_t_and_counts_every_supervised_position(logits, tokens):
    t = torch.linspace(0.05, 1.0, M)
    supervised = 40
    expected = sum(ce / t_i for ce, t_i in zip(cross_entropies(logits, tokens), t.tolist(), strict=True)) / supervised
    assert float(masked_diffusion_loss(logits, tokens, t, "elbo", supervised)) == pytest.approx(expected, rel=REL)


def test_mean_weighs_masked_positions_alike(logits, tokens):
    t = torch.linspace(0.05, 1.0, M)
    expected = sum(cross_entropies(logits, tokens)) / M
    assert float(masked_diffusion_loss(logits, tokens, t, "mean", 40)) == pytest.approx(expected, rel=REL)


def test_the_elbo_is_an_unbiased_estimate_of_the_loss_over_masks():
    """With loss c at every position, the mean over t and masks of sum (1/t) c / n is c: the 1/t undoes the masking."""
    generator = torch.Generator().manual_seed(2)
    draws, n, c = 4000, 8, math.log(5)
    total = 0.0
    for _ in range(draws):
        t = 0.3 + 0.7 * float(torch.rand(1, generator=generator))
        masked = int((torch.rand(n, generator=generator) < t).sum())
        rows = torch.zeros(masked, 5)  # even logits: every position costs log 5
        total += float(masked_diffusion_loss(rows, torch.zeros(masked, dtype=torch.long), torch.full((masked,), t), "elbo", n))
    # Standard error of a draw is about 0.3 c; of their mean 0.005 c.
    assert total / draws == pytest.approx(c, rel=0.03)


@pytest.mark.parametrize("eos_weight", [0.0, 2.5])
@pytest.mark.parametrize("weight_norm", ["weights", "positions"])
@pytest.mark.parametrize("step_weight", ["linear", "none"])
def test_dcd_is_the_step_weighted_kl_and_the_eos_cross_entropy(logits, tokens, steps, target, step_weight, weight_norm, eos_weight):
    config = DistillationConfig(step_weight=step_weight, weight_norm=weight_norm, eos_weight=eos_weight)
    loss, parts = direct_conditional_loss(logits, target, tokens, steps, EOS, config)
    w = [float(s) if step_weight == "linear" else 1.0 for s in steps.tolist()]
    rows = [kl(p, softmax(z)) for p, z in zip(target.tolist(), logits.tolist(), strict=True)]
    divergence = sum(a * b for a, b in zip(w, rows, strict=True)) / (sum(w) if weight_norm == "weights" else M)
    ce = cross_entropies(logits, tokens)
    eos = [ce[i] for i in range(M) if int(tokens[i]) == EOS]
    assert float(parts["kl"]) == pytest.approx(divergence, rel=REL)
    assert float(parts["eos_ce"]) == pytest.approx(sum(eos) / len(eos), rel=REL)
    assert float(loss) == pytest.approx(divergence + eos_weight * sum(eos) / len(eos), rel=REL)


def test_reverse_kl_turns_the_arguments_round(logits, tokens, steps, target):
    config = DistillationConfig(divergence="reverse_kl", eos_weight=0.0)
    loss, _ = direct_conditional_loss(logits, target, tokens, steps, EOS, config)
    # Where the target has no probability the reverse direction would be infinite: 1e-8 stands in for zero.
    floored = [[max(p, 1e-8) for p in row] for row in target.tolist()]
    rows = [
        sum(q * math.log(q / p) for q, p in zip(softmax(z), row, strict=True))
        for z, row in zip(logits.tolist(), floored, strict=True)
    ]
    w = steps.tolist()
    assert float(loss) == pytest.approx(sum(a * b for a, b in zip(w, rows, strict=True)) / sum(w), rel=REL)


@pytest.mark.parametrize(("temperature", "target_temperature"), [(2.0, 1.0), (1.0, 0.3), (2.0, 0.5)])
def test_temperatures(logits, tokens, steps, target, temperature, target_temperature):
    config = DistillationConfig(eos_weight=0.0, temperature=temperature, target_temperature=target_temperature)
    loss, _ = direct_conditional_loss(logits, target, tokens, steps, EOS, config)
    rows = []
    for p, z in zip(target.tolist(), logits.tolist(), strict=True):
        powered = [x ** (1 / (temperature * target_temperature)) for x in p]
        rows.append(kl([x / sum(powered) for x in powered], softmax(z, temperature)))
    w = steps.tolist()
    assert float(loss) == pytest.approx(sum(a * b for a, b in zip(w, rows, strict=True)) / sum(w), rel=REL)


def test_the_gradient_of_forward_kl_is_student_minus_target(target):
    """At w = 1 and T = 1 the gradient of the mean KL by the logits is (softmax(z) - P) / M."""
    z = torch.randn(M, V, generator=torch.Generator().manual_seed(4)).requires_grad_()
    config = DistillationConfig(step_weight="none", eos_weight=0.0)
    zeros = torch.zeros(M, dtype=torch.long)
    direct_conditional_loss(z, target, zeros, zeros + 1, EOS, config)[0].backward()
    expected = (torch.tensor([softmax(row) for row in z.tolist()]) - target) / M
    assert float((z.grad - expected).abs().max()) < 1e-7


def test_without_eos_there_is_no_eos_term_and_no_nan(logits, steps, target):
    words = torch.zeros(M, dtype=torch.long)
    loss, parts = direct_conditional_loss(logits, target, words, steps, EOS, DistillationConfig(eos_weight=5.0))
    assert float(parts["eos_ce"]) == 0.0
    assert float(loss) == pytest.approx(float(parts["kl"]))


def test_a_student_that_is_the_target_has_no_divergence(logits, tokens, steps):
    for divergence in ("forward_kl", "reverse_kl"):
        config = DistillationConfig(divergence=divergence, eos_weight=0.0)
        loss, _ = direct_conditional_loss(logits, logits.softmax(-1), tokens, steps, EOS, config)
        assert abs(float(loss)) < 1e-6


@pytest.mark.parametrize("name", ["next_token", "elbo", "kl"])
def test_bf16_logits_are_taken_to_float32_first(logits, tokens, steps, target, name):
    def loss(z: Tensor) -> Tensor:
        if name == "next_token":
            return next_token_loss(z, tokens)
        if name == "elbo":
            return masked_diffusion_loss(z, tokens, torch.full((M,), 0.5), "elbo", M)
        return direct_conditional_loss(z, target, tokens, steps, EOS, DistillationConfig())[0]

    half = logits.bfloat16()
    assert loss(half).dtype == torch.float32
    assert float(loss(half)) == float(loss(half.float()))


def test_unknown_choices_are_rejected(logits, tokens):
    with pytest.raises(ValueError, match=r"loss_weight must be one of \('elbo', 'mean'\), got 'sum'"):
        masked_diffusion_loss(logits, tokens, torch.ones(M), "sum", M)
    for name, value in {
        "divergence": "js",
        "step_weight": "square",
        "weight_norm": "tokens",
        "eos_weight": -1.0,
        "temperature": 0.0,
        "target_temperature": -0.5,
    }.items():
        with pytest.raises(ValueError, match=f"{name}.*{value}"):
            DistillationConfig(**{name: value})
