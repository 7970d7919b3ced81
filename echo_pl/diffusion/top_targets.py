"""Targets by their K likeliest tokens and the joint probability of all others, and losses over these events.

A distribution over a large vocabulary takes hundreds of kilobytes per position, nearly all of it for negligible probabilities.

Shapes: M positions, V vocabulary, K kept tokens, E events: the K tokens and, where K < V, all others as one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echo_pl.structs import TopTargets


def top_targets(target_MV: Tensor, k: int) -> TopTargets:
    """The ``k`` likeliest tokens of every distribution, or all of a smaller vocabulary, and the rest.

    Raises:
        ValueError: ``k`` is not positive.

    >>> import torch
    >>> top = top_targets(torch.tensor([[0.1, 0.6, 0.05, 0.25]]), 2)
    >>> top.token_MK.tolist(), round(float(top.tail_M), 3)
    ([[1, 3]], 0.15)
    """
    if k < 1:
        raise ValueError(f"the number of kept tokens must be positive, got {k}")
    probability_MK, token_MK = target_MV.topk(min(k, target_MV.shape[-1]), dim=-1)
    # A sum, not one minus the kept probabilities, which would be rounding error where the tail is small.
    return TopTargets(token_MK=token_MK, probability_MK=probability_MK, tail_M=target_MV.scatter(-1, token_MK, 0.0).sum(-1))


def temper_top(top: TopTargets, temperature: float, vocabulary: int) -> TopTargets:
    """Raise to the power 1 / temperature and normalise, the tail taken as spread evenly over the tokens that were not kept.

    Exact at temperature 1 and where all tokens were kept. For sharper targets the tail comes out too small, as an even
    spread has the least sum of powers above 1; for softer ones too large.
    """
    if temperature == 1.0:
        return top
    others = vocabulary - top.token_MK.shape[-1]
    powered_MK = top.probability_MK.pow(1.0 / temperature)
    tail_M = others * (top.tail_M / max(others, 1)).pow(1.0 / temperature)
    total_M = powered_MK.sum(-1) + tail_M
    return TopTargets(token_MK=top.token_MK, probability_MK=powered_MK / total_M[..., None], tail_M=tail_M / total_M)


def as_events(log_p_MV: Tensor, top: TopTargets) -> tuple[Tensor, Tensor]:
    """Distribution of a model and target over the same events: each kept token, and all others as one.

    For the tokens T that were kept, with P and p the whole distributions of target and model,

        KL over events = sum_{v in T} P(v) log (P(v) / p(v)) + P(not T) log (P(not T) / p(not T)),

    which is KL(P || p) less P(not T) times the divergence of the two within the tail: never more than the whole, equal to
    it at K = V, and for the model a gradient that moves the tail as a whole and leaves its proportions alone.

    Args:
        log_p_MV: normalised log-probabilities of the model.
        top: the target.

    Returns:
        Log-probabilities (M, E) of the model, with a gradient, and probabilities (M, E) of the target.
    """
    log_p_MK = log_p_MV.gather(-1, top.token_MK)
    if top.token_MK.shape[-1] >= log_p_MV.shape[-1]:  # nothing is left, and log 0 has no gradient
        return log_p_MK, top.probability_MK
    log_tail_M = log_p_MV.scatter(-1, top.token_MK, -torch.inf).logsumexp(-1)
    log_p_ME = torch.cat([log_p_MK, log_tail_M[..., None]], dim=-1)
    return log_p_ME, torch.cat([top.probability_MK, top.tail_M[..., None]], dim=-1)
