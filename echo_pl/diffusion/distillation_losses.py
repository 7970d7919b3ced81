"""Losses of the objectives beside ``dcd`` and ``ce`` as pure functions of rows (docs/explain/method.md, "Other objectives").

Shapes: M chosen positions, V vocabulary, G groups of positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_pl.diffusion.losses import (
    GlobalCount,
    StepWeight,
    divergence_rows,
    local_count,
    mean_where,
    pseudo_label_loss,
    step_weights,
)


def entropy_rows(logits_MV: Tensor, temperature: float) -> Tensor:
    """Entropy of softmax(logits / temperature) of every row, in nats."""
    log_p_MV = F.log_softmax(logits_MV.float() / temperature, dim=-1)
    return -(log_p_MV.exp() * log_p_MV).sum(-1)


def certainty_loss(
    logits_MV: Tensor,
    token_M: Tensor,
    copy_M: Tensor,
    entropy_weights: Sequence[float],
    temperature: float,
    global_count: GlobalCount = local_count,
) -> tuple[Tensor, dict[str, Tensor]]:
    """``sum_k CE_k + weight_k H_k`` over masked copies k (``dparallel``, ``d3llm``).

    CE_k is the mean cross-entropy over the rows of copy k; H_k is the mean entropy over those whose argmax is
    already right.

    Args:
        logits_MV: student logits.
        token_M: pseudo-labels.
        copy_M: masked copy of each row, from 0.
        entropy_weights: one per copy.
        temperature: of the entropy.
        global_count: reduces the counts that means are divided by over all ranks.

    Returns:
        The loss, and its detached parts: ``ce`` and ``entropy`` (sums over the copies, unweighted) and ``right``, the
        share of rows whose argmax is right.
    """
    ce_M = F.cross_entropy(logits_MV.float(), token_M, reduction="none")
    entropy_M = entropy_rows(logits_MV, temperature)
    right_M = logits_MV.argmax(-1) == token_M
    copies = [copy_M == k for k in range(len(entropy_weights))]
    ce = torch.stack([mean_where(ce_M, copy, global_count) for copy in copies])
    entropy = torch.stack([mean_where(entropy_M, copy & right_M, global_count) for copy in copies])
    loss = ce.sum() + (entropy * entropy.new_tensor(list(entropy_weights))).sum()
    parts = {"ce": ce.sum().detach(), "entropy": entropy.sum().detach(), "right": right_M.float().sum() / max(1, len(right_M))}
    return loss, parts


def nested_loss(
    logits_MV: Tensor,
    teacher_logits_MV: Tensor,
    token_M: Tensor,
    over_M: Tensor,
    temperature: float,
    kl_weight: float,
    global_count: GlobalCount = local_count,
) -> tuple[Tensor, dict[str, Tensor]]:
    """``lambda T^2 KL(softmax(q_T / T) || softmax(z / T)) + (1 - lambda) CE`` (``dscd``).

    Args:
        logits_MV: student logits z.
        teacher_logits_MV: the teacher's q_T, from a block with less masked; -inf for ids it never emits.
        token_M: pseudo-labels.
        over_M: bool, rows of the KL; the cross-entropy is over all rows.
        temperature: T.
        kl_weight: lambda.
        global_count: reduces the counts that means are divided by over all ranks.

    Returns:
        The loss, and its detached parts: ``kl`` (with T^2) and ``ce``.
    """
    target_MV = F.softmax(teacher_logits_MV.float() / temperature, dim=-1)
    kl_M = divergence_rows(logits_MV, target_MV, "forward_kl", temperature)
    kl = temperature**2 * mean_where(kl_M, over_M, global_count)
    ce = pseudo_label_loss(logits_MV, token_M, global_count)
    return kl_weight * kl + (1 - kl_weight) * ce, {"kl": kl.detach(), "ce": ce.detach()}


def token_log_probs(logits_MV: Tensor, token_M: Tensor) -> Tensor:
    """Log-probability of each row's token, (M,)."""
    return -F.cross_entropy(logits_MV.float(), token_M, reduction="none")


def group_mean(value_M: Tensor, group_M: Tensor) -> Tensor:
    """Mean of the rows of each group, (G,), in the order of rising group numbers."""
    groups_G, group_M = group_M.unique(return_inverse=True)
    total_G = value_M.new_zeros(len(groups_G)).index_add(0, group_M, value_M)
    return total_G / group_M.bincount()


def discriminative_loss(
    log_ratio_real_G: Tensor, log_ratio_fake_G: Tensor, alpha: float, beta: float, global_count: GlobalCount = local_count
) -> tuple[Tensor, dict[str, Tensor]]:
    """``-log sig(b r_real) - a log(1 - sig(b r_fake))``, mean over groups (``ddo`` without its path term).

    Args:
        log_ratio_real_G: l_phi(real) - l_ref(real), mean log-probs of the teacher's tokens.
        log_ratio_fake_G: the same for the reference's own guess.
        alpha: a.
        beta: b.
        global_count: reduces the counts that means are divided by over all ranks.

    Returns:
        The loss, and its detached parts: ``real`` and ``fake`` (unweighted).
    """
    every_G = torch.ones_like(log_ratio_real_G, dtype=torch.bool)
    real = -mean_where(F.logsigmoid(beta * log_ratio_real_G), every_G, global_count)
    fake = -mean_where(F.logsigmoid(-beta * log_ratio_fake_G), every_G, global_count)  # 1 - sig(x) = sig(-x)
    return real + alpha * fake, {"real": real.detach(), "fake": fake.detach()}


def weighted_pseudo_label_loss(
    logits_MV: Tensor, token_M: Tensor, commit_step_M: Tensor, kind: StepWeight, global_count: GlobalCount = local_count
) -> Tensor:
    """Cross-entropy of the teacher's tokens, weighted by commit steps: the path CE of ``ddo``."""
    weight_M = step_weights(commit_step_M, kind)
    return (weight_M * F.cross_entropy(logits_MV.float(), token_M, reduction="none")).sum() / global_count(weight_M.sum())
