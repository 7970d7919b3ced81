"""One-step decoding as a chain: how often tokens follow each other, beside what one forward says of every position by itself.

The tokens of a block that is filled in one step are chosen as if they were independent. Here they are the best path through
the block under ``sum_i log p_i(y_i) + w log r(y_i-1, y_i)``. The joint of a Markov chain is the product of its marginals p_i and of
its neighbours' ratios P_i(a, b) / (p_i-1(a) p_i(b)); r(a, b) = P(b | a) / P(b), counted in the reports that the student was trained
on, stands for these, wherever they are. For a stationary chain that is exact at w = 1; for reports it is not, hence the weight.
(Sun et al. 2019, arXiv 1910.11555, learn such a factor for parallel translation; here it is counted.) No forward is spent on it.

Knows tokens and distributions; nothing of models, caches or commit rules.

Shapes: A active samples, L block size, C candidates, V vocabulary, N pairs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from echo_pl.sampling.config import check_weight
from echo_pl.sampling.trajectory_store import stored_tokens

log = logging.getLogger(__name__)
CANDIDATES = 8
"""Likeliest tokens of a position that a path may take."""
_SMALL_VOCABULARY = 2048
_NEVER = -1.0e4
"""A score that no path takes which has another way; finite, as settled tokens may leave none."""


@dataclass(frozen=True, kw_only=True)
class Bigrams:
    """Log-ratios log P(b | a) / P(b) of pairs of tokens, and how far to trust them."""

    pair_N: Tensor
    """int64, rising: a V + b of the pairs that were seen."""
    log_ratio_N: Tensor
    """float32, of these."""
    unseen_V: Tensor
    """float32, by first token: of all pairs that were not."""
    weight: float
    """w, above 0."""
    candidates: int = CANDIDATES
    once_V: Tensor | None = None
    """bool: tokens that never follow themselves; None: all may."""

    def __post_init__(self) -> None:
        check_weight(self.weight, "bigrams")
        if self.weight == 0.0:
            raise ValueError("bigrams of weight 0 are none: leave them out")
        if self.candidates < 1:
            raise ValueError(f"a path needs at least one candidate, got {self.candidates}")

    @classmethod
    def count(
        cls, reports: Sequence[Tensor], vocabulary: int, weight: float, smoothing: float = 1.0, min_count: int = 1
    ) -> Bigrams:
        """Count pairs in token sequences.

        P(b | a) = (c(a, b) + s P(b)) / (c(a) + s), so that pairs which were not seen are unlikely and not impossible, and nothing
        is said of what follows a token that was never seen.

        Args:
            reports: (R,) tokens each; no pair spans two of them.
            vocabulary: V.
            weight: w.
            smoothing: s, in counts.
            min_count: pairs that were seen less often are as if they were not: slips of whoever wrote the reports.

        Raises:
            ValueError: there are no pairs, or none as often; a token is none of the vocabulary; the weight, the smoothing or the
                least count is none.
        """
        check_pairs(weight, min_count, repeats=True)
        if not 0.0 < smoothing < math.inf:
            raise ValueError(f"smoothing must be positive and finite, got {smoothing}")
        longer = [report for report in reports if len(report) > 1]
        if not longer:
            raise ValueError("no pairs of tokens to count: there is no report of two tokens or more")
        every = torch.cat([report.long() for report in reports])
        low, high = int(every.min()), int(every.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(f"reports hold tokens from {low} to {high}, and the vocabulary has {vocabulary}: it is another one's")
        first, second = (torch.cat([r.long()[s] for r in longer]) for s in (slice(None, -1), slice(1, None)))
        pair_N, count_N = (first * vocabulary + second).unique(return_counts=True)
        followed_V = torch.bincount(first, minlength=vocabulary).double() + smoothing
        share_V = torch.bincount(every, minlength=vocabulary).double() / len(every)
        often_N = count_N >= min_count
        if not often_N.any():
            raise ValueError(
                f"no pair of tokens is seen {min_count} times, the most frequent one {int(count_N.max())} times: lower "
                "student_bigrams_min_count"
            )
        pair_N, count_N = pair_N[often_N], count_N[often_N]
        first_N, second_N = pair_N // vocabulary, pair_N % vocabulary
        return cls(
            pair_N=pair_N,
            log_ratio_N=((count_N / share_V[second_N] + smoothing) / followed_V[first_N]).log().float(),
            unseen_V=(smoothing / followed_V).log().float(),
            weight=weight,
        )

    def to(self, device: torch.device) -> Bigrams:
        """On a device."""
        if self.pair_N.device == device:
            return self
        return replace(
            self,
            pair_N=self.pair_N.to(device),
            log_ratio_N=self.log_ratio_N.to(device),
            unseen_V=self.unseen_V.to(device),
            once_V=None if self.once_V is None else self.once_V.to(device),
        )

    @cached_property
    def _every(self) -> Tensor | None:
        """Of all pairs (V V,), where they are few: looked up in a fifth of the time. None: too many."""
        V = len(self.unseen_V)
        if V > _SMALL_VOCABULARY:
            return None
        return self.unseen_V.repeat_interleave(V).index_copy(0, self.pair_N, self.log_ratio_N)

    def log_ratio(self, first: Tensor, second: Tensor) -> Tensor:
        """log r(first, second), for tokens whose shapes broadcast."""
        pair = first * len(self.unseen_V) + second
        if self._every is not None:
            return self._every[pair]
        place = torch.searchsorted(self.pair_N, pair).clamp(max=len(self.pair_N) - 1)
        return torch.where(self.pair_N[place] == pair, self.log_ratio_N[place], self.unseen_V[first])

    def _link(self, first: Tensor, second: Tensor) -> Tensor:
        """What a pair adds to the score of a path."""
        link = self.weight * self.log_ratio(first, second)
        return link if self.once_V is None else link.masked_fill((first == second) & self.once_V[first], _NEVER)

    def best_path(
        self,
        logits_ALV: Tensor,
        block_ids_AL: Tensor,
        is_masked_AL: Tensor,
        before_A: Tensor | None = None,
        first_A: Tensor | None = None,
    ) -> Tensor:
        """The tokens (A, L) of the best path through each block (Viterbi).

        Args:
            logits_ALV: -inf at ids that are never sampled.
            block_ids_AL: the block; its tokens stay where it is not open.
            is_masked_AL: bool.
            before_A: the token before the block; None: there is none that was counted.
            first_A: place of the first token of the response, where a block begins with the end of a prompt: no pair spans both.
        """
        logits_ALV = logits_ALV[..., : len(self.unseen_V)]  # a model may have rows behind its tokens
        C = min(self.candidates, logits_ALV.shape[-1])
        # Not normalised: at each position that is one number, whatever the path.
        score_ALC, token_ALC = logits_ALV.topk(C, dim=-1)
        score_ALC = score_ALC.to(torch.promote_types(logits_ALV.dtype, torch.float32))
        # A settled position has one candidate, whatever the forward says of it now.
        token_ALC = torch.where(is_masked_AL[..., None], token_ALC, block_ids_AL[..., None])
        settled_C = score_ALC.new_full((C,), -torch.inf)
        settled_C[0] = 0.0
        score_ALC = torch.where(is_masked_AL[..., None], score_ALC, settled_C)
        link_ALCC = self._link(token_ALC[:, :-1, :, None], token_ALC[:, 1:, None, :])
        if first_A is not None:
            place_L = torch.arange(1, block_ids_AL.shape[1], device=first_A.device)
            link_ALCC = link_ALCC.masked_fill((place_L == first_A[:, None])[..., None, None], 0.0)
        best_AC = score_ALC[:, 0]
        if before_A is not None:
            best_AC = best_AC + self._link(before_A[:, None], token_ALC[:, 0])
        came_from: list[Tensor] = []
        for place in range(1, block_ids_AL.shape[1]):
            reached = (best_AC[:, :, None] + link_ALCC[:, place - 1]).max(dim=1)
            best_AC = reached.values + score_ALC[:, place]
            came_from.append(reached.indices)
        choice_A1 = best_AC.argmax(-1, keepdim=True)
        choices = [choice_A1]
        for back_AC in reversed(came_from):
            choice_A1 = back_AC.gather(1, choice_A1)
            choices.append(choice_A1)
        choice_AL = torch.cat(choices[::-1], dim=1)
        return token_ALC.gather(-1, choice_AL[..., None])[..., 0]


def stored_bigrams(
    folder: str | Path | None,
    weight: float,
    vocabulary: int,
    data: str,
    *,
    min_count: int = 1,
    once: Callable[[], Sequence[int]] | None = None,
) -> Bigrams | None:
    """Count the pairs of the reports that a student learnt from.

    Args:
        folder: its stored trajectories.
        weight: w; 0: no bigrams, and nothing is read.
        vocabulary: V.
        data: fingerprint of the data that is decoded. Bigrams of other data are used, with a warning.
        min_count: as of :meth:`Bigrams.count`.
        once: gives the tokens that never follow themselves; None: all may.

    Raises:
        FileNotFoundError: there are no trajectories in the folder.
        ValueError: no folder; damaged trajectories, or of another vocabulary; a weight or a least count that is none; no tokens
            for ``once``.
    """
    check_source(folder, weight)
    check_pairs(weight, min_count, repeats=once is None)
    if folder is None or weight == 0.0:
        return None
    identity, reports = stored_tokens(folder)
    if identity.data_fingerprint != data:
        log.warning(
            "bigrams are counted in %s, which is of data %s; this is %s: their token ids must mean the same",
            folder, identity.data_fingerprint, data,
        )  # fmt: skip
    try:
        bigrams = Bigrams.count(reports, vocabulary, weight, min_count=min_count)
    except ValueError as error:
        raise ValueError(f"no bigrams from {folder}: {error}") from error
    if once is None:
        return bigrams
    tokens = once()
    if not tokens:
        raise ValueError(
            "student_bigrams_repeats=false forbids nothing: no token of this vocabulary begins with a space and a letter; leave "
            "it out"
        )
    once_V = torch.zeros(vocabulary, dtype=torch.bool)
    once_V[torch.tensor(tokens, dtype=torch.long)] = True
    return replace(bigrams, once_V=once_V)


def check_greedy(weight: float, temperature: float) -> None:
    """Refuse bigrams for tokens that are drawn.

    Raises:
        ValueError: both are above 0.
    """
    if weight and temperature:
        raise ValueError(
            f"student_bigrams={weight} needs greedy tokens: stage.module.decode.token_choice.temperature=0, got {temperature}"
        )


def check_source(folder: str | Path | None, weight: float) -> None:
    """Refuse bigrams that have nothing to be counted in.

    Raises:
        ValueError: a weight that is none, or one above 0 without a folder of stored trajectories.
    """
    check_weight(weight, "bigrams")
    if weight and folder is None:
        raise ValueError(
            f"student_bigrams={weight} counts pairs of tokens in stored trajectories: give stage.module.trajectories=<folder> "
            "(echo-pl collect makes it)"
        )


def check_pairs(weight: float, min_count: int, repeats: bool) -> None:
    """Refuse rules for pairs of tokens that are none, or that there are no bigrams for.

    Raises:
        ValueError: a least count that is no whole number or below 1, ``repeats`` that is no bool; a least count above 1, or
            ``repeats=False``, without a weight.
    """
    if isinstance(min_count, bool) or not isinstance(min_count, int) or min_count < 1:
        raise ValueError(f"student_bigrams_min_count must be a whole number and at least 1, got {min_count!r}")
    if not isinstance(repeats, bool):
        raise ValueError(f"student_bigrams_repeats must be true or false, got {repeats!r}")
    if not weight and (min_count > 1 or not repeats):
        rule = "student_bigrams_repeats=false" if min_count == 1 else f"student_bigrams_min_count={min_count}"
        raise ValueError(f"{rule} is of no use without student_bigrams=<weight>")
