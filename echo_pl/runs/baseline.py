"""The AR decoder of a chain, for comparisons: a diffusion model's ancestor at stage 1, decoded token by token.

After stage 2 a model is no longer autoregressive, so its own weights cannot be the baseline.
"""

from __future__ import annotations

import logging
from pathlib import Path

from echo_pl.backbone.checkpoint import StageRecord, is_checkpoint, load_weights, read_checkpoint
from echo_pl.backbone.factory import BackboneFactory
from echo_pl.sampling import AutoregressiveSampler
from echo_pl.sampling.decoder import StageDecoder
from echo_pl.structs import SpecialTokens

log = logging.getLogger(__name__)


def ancestor(start: str | None, record: StageRecord | None, stage: str) -> str | None:
    """Follow the ``start`` entries of checkpoints back to one of ``stage``; None (and a warning) if a checkpoint is missing."""
    while record is not None and start is not None:
        if record.stage == stage:
            return start
        start = record.start
        if start is not None and not is_checkpoint(Path(start)):
            log.warning("the checkpoint %s, of an earlier stage of this chain, is gone", start)
            return None
        record = None if start is None else read_checkpoint(start)[0]
    return None


def autoregressive_baseline(
    *,
    checkpoint: str | None,
    backbone: BackboneFactory,
    special: SpecialTokens,
    vocab_size: int,
    max_response_tokens: int,
) -> AutoregressiveSampler | None:
    """Build the sampler from a stage-1 checkpoint; None without one.

    Args:
        checkpoint: of stage ``pretrain``, or None if the chain has none (a backbone that was AR from the start).
        backbone: builds the model.
        special: of the run's tokenizer.
        vocab_size: number of its ids.
        max_response_tokens: limit of the decode.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: it is of another stage, or does not fit the backbone.
    """
    if checkpoint is None:
        return None
    vlm = backbone.build(special, vocab_size).eval().requires_grad_(False)
    load_weights(vlm, checkpoint, ("pretrain",))
    return StageDecoder(special=special, max_response_tokens=max_response_tokens).autoregressive(vlm)
