"""Losses of the three stages (docs/explain/method.md) as pure functions of rows of logits and targets.

Shapes: M chosen positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_pl.diffusion.top_targets import as_events, temper_top
from echo_pl.structs import TopTargets

LossWeight = Literal["elbo", "mean"]
Divergence = Literal["forward_kl", "reverse_kl"]
StepWeight = Literal["linear", "none"]
WeightNorm = Literal["weights", "positions"]


GlobalCount = Callable[[Tensor], Tensor]
"""Reduction of a mean's divisor on this rank to the sum over all ranks, divided by their number; see :func:`local_count`."""


def local_count(count: Tensor) -> Tensor:
    """:data:`GlobalCount` of a single process: the count itself."""
    return count


def next_token_loss(logits_MV: Tensor, target_M: Tensor, positions: Tensor | int | None = None) -> Tensor:
    """Cross-entropy of the next token, mean over positions; context positions are not among the rows.

    Args:
        logits_MV: logits at the positions before a response token.
        target_M: next tokens.
        positions: divisor of the sum; None: M.
    """
    if positions is None:
        return F.cross_entropy(logits_MV.float(), target_M)
    return F.cross_entropy(logits_MV.float(), target_M, reduction="sum") / positions


def masked_diffusion_loss(
    logits_MV: Tensor,
    target_M: Tensor,
    t_M: Tensor,
    weight: LossWeight,
    supervised: Tensor | int,
    masked: Tensor | int | None = None,
) -> Tensor:
    """Cross-entropy of x0 at masked positions, same position, no shift ("Stage 2: Response-Asymmetric Diffusion").

    Args:
        logits_MV: student logits at the masked xt positions.
        target_M: the clean tokens there.
        t_M: masking probability of each position's block.
        weight: ``elbo`` weighs a position by 1/t and divides by the number of supervised positions (the linear-schedule
            NELBO per token); ``mean`` is the plain mean over masked positions.
        supervised: number of supervised positions over all noisy copies, masked or not (used by ``elbo``).
        masked: number of masked ones, the divisor of ``mean``; None: M.

    Raises:
        ValueError: an unknown ``weight``.
    """
    loss_M = F.cross_entropy(logits_MV.float(), target_M, reduction="none")
    if weight == "elbo":
        return (loss_M / t_M).sum() / supervised
    if weight == "mean":
        return loss_M.sum() / (len(loss_M) if masked is None else masked)
    raise ValueError(f"loss_weight must be one of {get_args(LossWeight)}, got {weight!r}")


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Choices of stage 3 that the paper leaves open, with our defaults."""

    divergence: Divergence = "forward_kl"
    step_weight: StepWeight = "linear"
    """w(s) = s (later commits weigh more) or 1."""
    weight_norm: WeightNorm = "weights"
    """Divide the weighted sum by the sum of weights (as the method writes it) or by the number of positions."""
    eos_weight: float = 1.0
    """lambda_eos, the weight of the eos cross-entropy."""
    temperature: float = 1.0
    """Softens (> 1) or sharpens (< 1) the student's and the teacher's distributions alike."""
    target_temperature: float = 1.0
    """Sharpens (< 1) or softens the stitched target alone; 0.3 did better than 1 in a small trial."""
    ce_share: float = 0.0
    """c: the divergence becomes (1 - c) of itself and c of the cross-entropy on the teacher's tokens, weighted alike."""

    def __post_init__(self) -> None:
        if self.divergence not in get_args(Divergence):
            raise ValueError(f"divergence must be one of {get_args(Divergence)}, got {self.divergence!r}")
        if self.step_weight not in get_args(StepWeight):
            raise ValueError(f"step_weight must be one of {get_args(StepWeight)}, got {self.step_weight!r}")
        if self.weight_norm not in get_args(WeightNorm):
            raise ValueError(f"weight_norm must be one of {get_args(WeightNorm)}, got {self.weight_norm!r}")
        if self.eos_weight < 0:
            raise ValueError(f"eos_weight must not be negative, got {self.eos_weight}")
        if not 0.0 <= self.ce_share <= 1.0:
            raise ValueError(f"ce_share must be in [0, 1], got {self.ce_share}")
        if self.temperature <= 0 or self.target_temperature <= 0:
            raise ValueError(
                f"temperature and target_temperature must be positive, got {self.temperature} and {self.target_temperature}"
            )


def step_weights(commit_step_M: Tensor, kind: StepWeight) -> Tensor:
    """w(s): the commit step itself, or ones."""
    return commit_step_M.float() if kind == "linear" else torch.ones_like(commit_step_M, dtype=torch.float32)


def divergence_rows(logits_MV: Tensor, target_MV: Tensor, kind: Divergence, temperature: float) -> Tensor:
    """KL(P || p) (forward) or KL(p || P) (reverse) of every row, in nats; P is the target, p the student.

    Entries that are zero in the target are floored at 1e-8 for the reverse direction, where they would be infinite.
    """
    return divergence_between(F.log_softmax(logits_MV.float() / temperature, dim=-1), target_MV, kind)


def divergence_between(log_p_MV: Tensor, target_MV: Tensor, kind: Divergence) -> Tensor:
    """:func:`divergence_rows` of normalised log-probabilities."""
    if kind == "forward_kl":
        return F.kl_div(log_p_MV, target_MV, reduction="none").sum(-1)
    return (log_p_MV.exp() * (log_p_MV - target_MV.clamp_min(1e-8).log())).sum(-1)


def target_divergence(logits_MV: Tensor, target: Tensor | TopTargets, config: DistillationConfig) -> Tensor:
    """Divergence of every row from its tempered target, (M,): over tokens, or over the events of a target by its top tokens.

    The latter is KL of :func:`echo_pl.diffusion.top_targets.as_events`; the student is tempered before its tokens become events.
    """
    sharpened = config.target_temperature * config.temperature
    if isinstance(target, Tensor):
        return divergence_rows(logits_MV, temper(target.float(), sharpened), config.divergence, config.temperature)
    log_p_MV = F.log_softmax(logits_MV.float() / config.temperature, dim=-1)
    return divergence_between(*as_events(log_p_MV, temper_top(target, sharpened, log_p_MV.shape[-1])), config.divergence)


def temper(probabilities_MV: Tensor, temperature: float) -> Tensor:
    """Raise a distribution to the power 1/temperature and normalise it."""
    if temperature == 1.0:
        return probabilities_MV
    powered = probabilities_MV.pow(1.0 / temperature)
    return powered / powered.sum(-1, keepdim=True)


def direct_conditional_loss(
    logits_MV: Tensor,
    target: Tensor | TopTargets,
    token_M: Tensor,
    commit_step_M: Tensor,
    eos: int,
    config: DistillationConfig,
    global_count: GlobalCount = local_count,
) -> tuple[Tensor, dict[str, Tensor]]:
    """DCD: ``sum_i w(s_i) KL(P_i || p_i) / sum_i w(s_i) + lambda_eos * mean_{i: token_i = eos} CE(p_i, eos)``.

    Args:
        logits_MV: student logits at the supervised positions, all of them masked in the student's input.
        target: stitched target P, whole (M, V) or by its top tokens.
        token_M: pseudo-labels.
        commit_step_M: teacher's commit steps, from 1.
        eos: id of the eos token.
        config: open choices.
        global_count: reduces the counts that means are divided by over all ranks.

    Returns:
        The loss, and its detached parts: ``kl`` (weighted), ``eos_ce`` and, where it has a share, ``ce`` (weighted).
    """
    weight_M = step_weights(commit_step_M, config.step_weight)
    divergence_M = target_divergence(logits_MV, target, config)
    norm = global_count((weight_M if config.weight_norm == "weights" else torch.ones_like(weight_M)).sum())
    divergence = (weight_M * divergence_M).sum() / norm
    parts = {"kl": divergence.detach()}
    if config.ce_share:
        ce = (weight_M * F.cross_entropy(logits_MV.float(), token_M, reduction="none")).sum() / norm
        parts["ce"] = ce.detach()
        divergence = (1 - config.ce_share) * divergence + config.ce_share * ce
    is_eos_M = token_M == eos
    # A batch without eos has a zero term that stays on the graph, so that every rank's backward is alike.
    eos_ce = F.cross_entropy(logits_MV.float(), token_M, reduction="none")[is_eos_M].sum() / at_least_one(
        global_count(is_eos_M.sum())
    )
    return divergence + config.eos_weight * eos_ce, {**parts, "eos_ce": eos_ce.detach()}


def mean_where(value_M: Tensor, chosen_M: Tensor, global_count: GlobalCount = local_count) -> Tensor:
    """Mean over the chosen rows; without any, a zero that stays on the graph, as every rank needs a backward."""
    return value_M.masked_fill(~chosen_M, 0.0).sum() / at_least_one(global_count(chosen_M.sum()))


def at_least_one(count: Tensor) -> Tensor:
    """Divisor: the count (a fraction under several ranks), or 1 instead of 0."""
    return torch.where(count > 0, count, torch.ones_like(count))


def pseudo_label_loss(logits_MV: Tensor, token_M: Tensor, global_count: GlobalCount = local_count) -> Tensor:
    """Sequence-level distillation: cross-entropy of the teacher's tokens from the fully masked block (``ce``)."""
    if global_count is local_count:
        return F.cross_entropy(logits_MV.float(), token_M)
    loss_M = F.cross_entropy(logits_MV.float(), token_M, reduction="none")
    return mean_where(loss_M, torch.ones_like(token_M, dtype=torch.bool), global_count)
