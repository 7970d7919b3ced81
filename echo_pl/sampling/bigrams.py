"""Bigrams: joint choice of the tokens of a one-step block, from the forward's marginals and counted pairs of tokens.

One step chooses the tokens of a block independently. With bigrams they are the best path through the block under
``sum_i log p_i(y_i) + w log r(y_i-1, y_i)``. The joint of a Markov chain is the product of its marginals p_i and of its neighbours'
ratios P_i(a, b) / (p_i-1(a) p_i(b)). r(a, b) = P(b | a) / P(b), counted in the student's training reports,
approximates these. For a stationary chain that is exact at w = 1; for reports it is an approximation, hence the weight. No extra
forward is needed.
Sun et al. 2019 (arXiv 1910.11555) learn such a factor for parallel translation.

Shapes: A active samples, L block size, C candidates, V vocabulary, N pairs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
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
"""Score of a forbidden pair; finite, as committed tokens may leave no other path."""


@dataclass(frozen=True, kw_only=True)
class Bigrams:
    """Log-ratios log P(b | a) / P(b) of pairs of tokens, and their weight."""

    pair_N: Tensor
    """int64, ascending: a V + b of the pairs that were seen."""
    log_ratio_N: Tensor
    """float32: log-ratios of these pairs."""
    unseen_V: Tensor
    """float32, by first token: log-ratio of all pairs that were not seen."""
    weight: float
    """w, above 0."""
    candidates: int = CANDIDATES
    once_V: Tensor | None = None
    """bool: tokens that never follow themselves; None: all may."""

    def __post_init__(self) -> None:
        check_weight(self.weight, "bigrams")
        if self.weight == 0.0:
            raise ValueError("the weight of bigrams must be above 0, got 0: leave them out")
        if self.candidates < 1:
            raise ValueError(f"a path needs at least one candidate, got {self.candidates}")

    @classmethod
    def count(
        cls, reports: Sequence[Tensor], vocabulary: int, weight: float, smoothing: float = 1.0, min_count: int = 1
    ) -> Bigrams:
        """Count pairs in token sequences.

        P(b | a) = (c(a, b) + s P(b)) / (c(a) + s). Pairs that were not seen are unlikely, not impossible. A token that was never
        seen has no influence on the next one.

        Args:
            reports: (R,) tokens each; no pair spans two of them.
            vocabulary: V.
            weight: w.
            smoothing: s, in counts.
            min_count: pairs that were seen less often count as not seen: rare pairs are often errors of the teacher.

        Raises:
            ValueError: there are no pairs, or none is frequent enough; a token is outside the vocabulary; the weight, the smoothing
                or ``min_count`` is invalid.
        """
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {min_count}")
        if not 0.0 < smoothing < math.inf:
            raise ValueError(f"smoothing must be positive and finite, got {smoothing}")
        longer = [report for report in reports if len(report) > 1]
        if not longer:
            raise ValueError("no pairs of tokens to count: there is no report of two tokens or more")
        every = torch.cat([report.long() for report in reports])
        low, high = int(every.min()), int(every.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"reports hold tokens from {low} to {high}, and the vocabulary has {vocabulary}: another tokenizer made them"
            )
        first, second = (torch.cat([r.long()[s] for r in longer]) for s in (slice(None, -1), slice(1, None)))
        pair_N, count_N = (first * vocabulary + second).unique(return_counts=True)
        followed_V = torch.bincount(first, minlength=vocabulary).double() + smoothing
        share_V = torch.bincount(every, minlength=vocabulary).double() / len(every)
        often_N = count_N >= min_count
        if not often_N.any():
            raise ValueError(
                f"no pair of tokens is seen {min_count} times, the most frequent one {int(count_N.max())} times: lower "
                "student.min_count"
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
        """Return the same bigrams on a device."""
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
        """Log-ratios of all pairs (V V,), five times faster to look up; None: the vocabulary is too large."""
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
        """Score that a pair adds to a path."""
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
            block_ids_AL: the block; its committed tokens stay.
            is_masked_AL: bool, not committed yet.
            before_A: the token before the block; None: the block is the first one.
            first_A: place of the first response token in a block that begins with a context tail: no pair spans both.
        """
        logits_ALV = logits_ALV[..., : len(self.unseen_V)]  # a model may have more rows than tokens
        C = min(self.candidates, logits_ALV.shape[-1])
        # Not normalised: the normaliser of a position is the same for every path.
        score_ALC, token_ALC = logits_ALV.topk(C, dim=-1)
        score_ALC = score_ALC.to(torch.promote_types(logits_ALV.dtype, torch.float32))
        # A committed position has one candidate, whatever the forward predicts there now.
        token_ALC = torch.where(is_masked_AL[..., None], token_ALC, block_ids_AL[..., None])
        committed_C = score_ALC.new_full((C,), -torch.inf)
        committed_C[0] = 0.0
        score_ALC = torch.where(is_masked_AL[..., None], score_ALC, committed_C)
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
    folder: str | Path,
    weight: float,
    vocabulary: int,
    data: str,
    *,
    min_count: int = 1,
    never_repeated: Sequence[int] | None = None,
) -> Bigrams:
    """Count the pairs of the reports that a student was trained on.

    Args:
        folder: its stored trajectories.
        weight: w.
        vocabulary: V.
        data: fingerprint of the data that is decoded. Bigrams of other data are used, with a warning.
        min_count: see :meth:`Bigrams.count`.
        never_repeated: tokens that never follow themselves; None: all may.

    Raises:
        FileNotFoundError: there are no trajectories in the folder.
        ValueError: damaged trajectories, or of another vocabulary; an invalid weight or count; ``never_repeated`` is empty.
    """
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
    if never_repeated is None:
        return bigrams
    if not never_repeated:
        raise ValueError(
            "student.repeats=false forbids nothing: no token of this vocabulary begins with a space and a letter; leave it out"
        )
    once_V = torch.zeros(vocabulary, dtype=torch.bool)
    once_V[torch.tensor(never_repeated, dtype=torch.long)] = True
    return replace(bigrams, once_V=once_V)
