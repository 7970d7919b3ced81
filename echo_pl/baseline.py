"""The AR decoder of a chain, for comparisons: a diffusion model's ancestor at stage 1, decoded token by token.

After stage 2 a model is no longer autoregressive, so its own weights cannot be the baseline.
"""

from __future__ import annotations

import logging
from pathlib import Path

from echo_pl.backbone.checkpoint import StageRecord, load_weights, read_checkpoint
from echo_pl.backbone.factory import BackboneFactory
from echo_pl.data.tokenizer import load_tokenizer
from echo_pl.sampling.autoregressive import AutoregressiveSampler

log = logging.getLogger(__name__)


def ancestor(start: str | None, record: StageRecord | None, stage: str) -> str | None:
    """Follow the ``start`` entries of checkpoints back to one of ``stage``; None (and a warning) where the trail ends."""
    while record is not None and start is not None:
        if record.stage == stage:
            return start
        start = record.start
        if start is not None and not Path(start).is_file():
            log.warning("the checkpoint %s, of an earlier stage of this chain, is gone", start)
            return None
        record = None if start is None else read_checkpoint(start)[0]
    return None


def autoregressive_baseline(
    *, checkpoint: str, backbone: BackboneFactory, tokenizer_path: str, max_response_tokens: int
) -> AutoregressiveSampler:
    """Build the sampler from a stage-1 checkpoint.

    Raises:
        FileNotFoundError: no checkpoint or tokenizer there.
        ValueError: it is of another stage, or does not fit the backbone.
    """
    tokenizer, special = load_tokenizer(tokenizer_path)
    vlm = backbone.build(special, len(tokenizer)).eval().requires_grad_(False)
    load_weights(vlm, checkpoint, ("pretrain",))
    return AutoregressiveSampler(vlm, special, max_response_tokens)
