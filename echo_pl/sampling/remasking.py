"""Commit rules: the masked positions of a block that a forward commits (docs/explain/method.md, "Decoding").

Shapes: A active samples, L block size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from echo_pl.sampling.config import DecodeConfig, TokenChoice


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Prediction of a forward at every position of a block. Confidences and log-probabilities are computed on demand."""

    token_AL: Tensor
    logits_ALV: Tensor
    """-inf at ids that are never sampled."""

    @property
    def confidence_AL(self) -> Tensor:
        """Probability of the chosen token without temperature; the largest one when greedy."""
        # One pass over the vocabulary without a conversion: three times faster than a logsumexp.
        probs_ALV = self.logits_ALV.softmax(-1, dtype=_precise(self.logits_ALV.dtype))
        return probs_ALV.gather(-1, self.token_AL[..., None])[..., 0]

    @property
    def log_probs_ALV(self) -> Tensor:
        """The distribution without temperature."""
        return self.logits_ALV.log_softmax(-1, dtype=_precise(self.logits_ALV.dtype))


def predict(logits_ALV: Tensor, never_sampled: Tensor, choice: TokenChoice, generator: torch.Generator | None) -> Prediction:
    """Choose tokens from logits; ids that are never sampled get probability 0, in ``logits_ALV`` itself."""
    # In place, as a copy of a large vocabulary is slow and no one else uses these logits.
    logits_ALV.index_fill_(-1, never_sampled, -torch.inf)
    if choice.temperature == 0:
        return Prediction(token_AL=first_largest(logits_ALV), logits_ALV=logits_ALV)
    log_probs_ALV = logits_ALV.log_softmax(-1, dtype=_precise(logits_ALV.dtype))
    return Prediction(token_AL=sample(log_probs_ALV, choice, generator), logits_ALV=logits_ALV)


def _precise(dtype: torch.dtype) -> torch.dtype:
    """At least float32."""
    return torch.promote_types(dtype, torch.float32)


def first_largest(logits_ALV: Tensor) -> Tensor:
    """``argmax`` over the vocabulary, the first of equals; for a large one on a CPU in two stages, five times faster.

    On a CPU argmax reads a row value by value, amax uses vector instructions. So amax finds the chunk of the largest value, and
    argmax its place in the chunk.
    """
    V = logits_ALV.shape[-1]
    width = _chunk_width(V) if logits_ALV.device.type == "cpu" else 1
    if width == 1:
        return logits_ALV.argmax(-1)
    chunks = logits_ALV.unflatten(-1, (V // width, width))
    chunk_AL1 = chunks.amax(-1).argmax(-1, keepdim=True)
    inside = chunks.gather(-2, chunk_AL1[..., None].expand(*chunk_AL1.shape, width))[..., 0, :]
    return chunk_AL1[..., 0] * width + inside.argmax(-1)


_LARGE_VOCABULARY = 8192
_WIDEST_CHUNK = 2048
_NARROWEST_CHUNK = 32


def _chunk_width(vocabulary: int) -> int:
    """Largest chunk width that divides a large vocabulary; 1 if there is none, or no need.

    Not cached, as torch.compile warns of caches.
    """
    if vocabulary < _LARGE_VOCABULARY:
        return 1
    return next((w for w in range(_WIDEST_CHUNK, _NARROWEST_CHUNK - 1, -1) if vocabulary % w == 0), 1)


def sample(log_probs_ALV: Tensor, choice: TokenChoice, generator: torch.Generator | None) -> Tensor:
    """Sample tokens with temperature, top-k and top-p."""
    scaled = log_probs_ALV / choice.temperature
    if choice.top_k:
        floor = scaled.topk(min(choice.top_k, scaled.shape[-1]), dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < floor, -torch.inf)
    probs = scaled.softmax(-1)
    if choice.top_p < 1.0:
        ordered, index = probs.sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= choice.top_p
        probs = torch.zeros_like(probs).scatter(-1, index, ordered.masked_fill(beyond, 0.0))
    # On the CPU, so that the samples of a seed do not depend on the device.
    flat = torch.multinomial(probs.flatten(0, -2).cpu(), 1, generator=generator).to(probs.device)
    return flat.view(probs.shape[:-1])


def choose_commits(
    prediction: Prediction, is_masked_AL: Tensor, config: DecodeConfig, random_order_AL: Tensor | None = None
) -> Tensor:
    """Masked positions to commit now, bool (A, L): at least ``config.quota`` of them, or all that are masked.

    Args:
        prediction: prediction of this forward.
        is_masked_AL: bool.
        config: rule and thresholds.
        random_order_AL: a score for every position, highest first; for ``random`` only.
    """
    quota = config.quota
    if quota >= config.block_size:  # one step per block, as a student decodes: commit everything
        return is_masked_AL
    if config.gate:
        return _confident(prediction.confidence_AL, is_masked_AL, config.gate, quota)
    if config.remasking == "sequential":
        place = torch.arange(config.block_size, device=is_masked_AL.device, dtype=torch.float32)
        return is_masked_AL & (_rank(-place.expand(is_masked_AL.shape), is_masked_AL) < quota)
    if config.remasking == "random":
        assert random_order_AL is not None, "random remasking needs an order"
        return is_masked_AL & (_rank(random_order_AL, is_masked_AL) < quota)
    if config.remasking == "entropy_bounded":
        return _entropy_bounded(prediction.log_probs_ALV, is_masked_AL, config.entropy_bound, quota)
    confidence = prediction.confidence_AL
    if config.remasking == "low_confidence_dynamic":
        return _confident(confidence, is_masked_AL, config.confidence_threshold, quota)
    return is_masked_AL & (_rank(confidence, is_masked_AL) < quota)


def _confident(confidence_AL: Tensor, is_masked_AL: Tensor, threshold: float, quota: int) -> Tensor:
    """Positions at or above a threshold, and the most confident ones up to a quota."""
    return is_masked_AL & ((_rank(confidence_AL, is_masked_AL) < quota) | (confidence_AL >= threshold))


def _rank(score_AL: Tensor, is_masked_AL: Tensor) -> Tensor:
    """Rank of every masked position by descending score (ties: leftmost first)."""
    order = score_AL.masked_fill(~is_masked_AL, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1)


def _entropy_bounded(log_probs_ALV: Tensor, is_masked_AL: Tensor, bound: float, quota: int) -> Tensor:
    entropy = -(log_probs_ALV.exp() * log_probs_ALV.nan_to_num(neginf=0.0)).sum(-1)
    rank = _rank(-entropy, is_masked_AL)
    by_rank = torch.zeros_like(entropy).scatter(-1, rank, entropy.masked_fill(~is_masked_AL, 0.0))
    # The joint error of a set is bounded by the sum of its entropies without the largest one, which is the last one taken.
    before = (by_rank.cumsum(-1) - by_rank).gather(-1, rank)
    return is_masked_AL & ((before <= bound) | (rank < quota))
