"""Learning-rate schedules and parameter groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from echo_pl.stages.optimization import Optimization


def rates(optimization: Optimization, total: int) -> list[float]:
    """Learning rate of every optimizer step, as a trainer sees it."""
    configured = optimization.configure(nn.Linear(2, 2), total)
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert configured["lr_scheduler"]["interval"] == "step"
    out = []
    for _ in range(total):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


def test_linear_warm_up_then_cosine():
    got = rates(Optimization(learning_rate=2.0, warmup_steps=4, final_share=0.1), 24)
    assert got[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    expected = [2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 20)) / 2) for step in range(20)]
    assert got[4:] == pytest.approx(expected)
    assert got[4:] == sorted(got[4:], reverse=True)


def test_constant_after_warm_up():
    assert rates(Optimization(learning_rate=2.0, warmup_steps=2, schedule="constant"), 6) == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_the_cosine_ends_at_its_final_share_and_stays_there():
    optimization = Optimization(learning_rate=1.0, final_share=0.02)
    assert optimization.factor(100, 100) == pytest.approx(0.02)
    assert optimization.factor(150, 100) == pytest.approx(0.02)


def test_an_unknown_number_of_steps_raises_for_a_cosine():
    """Endless training has no end to anneal to."""
    with pytest.raises(ValueError, match="max_steps"):
        Optimization(learning_rate=1.0).configure(nn.Linear(2, 2), math.inf)
    Optimization(learning_rate=1.0, schedule="constant").configure(nn.Linear(2, 2), math.inf)


def test_only_trained_matrices_are_decayed():
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3))
    module[2].requires_grad_(False)
    optimizer = Optimization(learning_rate=1.0, weight_decay=0.3).configure(module, 10)["optimizer"]
    decayed, others = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert decayed["params"] == [module[0].weight]
    assert {id(p) for p in others["params"]} == {id(module[0].bias), id(module[1].weight), id(module[1].bias)}


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 0.0), ("schedule", "linear"), ("warmup_steps", -1), ("weight_decay", -0.1), ("final_share", 1.5)],
)
def test_impossible_values_raise(name, value):
    with pytest.raises(ValueError, match=f"{name}.*got.*{value}"):
        Optimization(**{"learning_rate": 1.0, name: value})
