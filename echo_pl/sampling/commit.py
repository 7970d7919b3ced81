"""One commit of a block: choose tokens, and the masked positions that take them (docs/explain/method.md, "Decoding").

Shapes: A active samples, L block size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.remasking import Prediction, choose_commits, predict

TokenPath = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits (A, L, V), the tokens of the block and its masked positions to tokens (A, L)."""


class BlockState(NamedTuple):
    """A block while it is denoised."""

    block_ids_AL: Tensor
    is_masked_AL: Tensor
    order_AL: Tensor | None = None
    """A score for each position, highest first; only for ``random`` remasking."""


class CommitRule(NamedTuple):
    """The choice of tokens and positions in one denoising step."""

    config: DecodeConfig
    never_sampled: Tensor
    generator: torch.Generator | None = None
    """For sampled tokens."""
    path: TokenPath | None = None
    """Chooses the tokens of a block jointly. It does not change which positions are committed."""


class Commit(NamedTuple):
    """A block after one denoising step."""

    state: BlockState
    committed_AL: Tensor
    token_AL: Tensor
    logits_ALV: Tensor
    """-inf at ids that are never sampled."""

    @property
    def log_probs_ALV(self) -> Tensor:
        """Distributions of this step, without temperature."""
        return Prediction(token_AL=self.token_AL, logits_ALV=self.logits_ALV).log_probs_ALV


def commit(logits_ALV: Tensor, state: BlockState, rule: CommitRule) -> Commit:
    """Commit tokens to masked positions of a block."""
    block_ids_AL, is_masked_AL, order_AL = state
    prediction = predict(logits_ALV, rule.never_sampled, rule.config.token_choice, rule.generator)
    committed_AL = choose_commits(prediction, is_masked_AL, rule.config, order_AL)
    token_AL = prediction.token_AL
    if rule.path is not None:
        token_AL = rule.path(prediction.logits_ALV, block_ids_AL, is_masked_AL)
    after = BlockState(torch.where(committed_AL, token_AL, block_ids_AL), is_masked_AL & ~committed_AL, order_AL)
    return Commit(after, committed_AL, token_AL, prediction.logits_ALV)
