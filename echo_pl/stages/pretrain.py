"""Stage 1: autoregressive continued pre-training on normalized reports (docs/explain/method.md, "Stage 1: NormalizedPretrain").

Shapes: B batch, P context, R response, M supervised positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from echo_pl.backbone.checkpoint import StageRecord, load_weights
from echo_pl.backbone.factory import BackboneFactory
from echo_pl.diffusion.losses import next_token_loss
from echo_pl.diffusion.sequence import autoregressive_sequence
from echo_pl.sampling.autoregressive import AutoregressiveSampler
from echo_pl.sampling.decoder import StageDecoder
from echo_pl.stages.base import ReportStage
from echo_pl.stages.optimization import Optimization
from echo_pl.stages.parallel import all_reduce_mean, is_distributed, shard_if_needed
from echo_pl.stages.validation import TextTools
from echo_pl.structs import Batch


class NormalizedPretrain(ReportStage):
    """Next-token cross-entropy on the response; the context is masked out of the loss. All parameters are trained."""

    stage_name = "pretrain"
    previous_stages = ("warmup", "pretrain")
    in_blocks = False

    def __init__(
        self,
        *,
        backbone: BackboneFactory,
        text: TextTools,
        optimization: Optimization,
        lineage: StageRecord,
        max_response_tokens: int,
        start: str | None = None,
        pack_tokens: int | None = None,
        generation_batches: int = 1,
    ) -> None:
        """Take the ready-made parts; the model is built in ``configure_model``.

        Args: those of :class:`ReportStage`, and
            max_response_tokens: limit of validation decodes.
            start: checkpoint of the vision warm-up, or None (a pretrained backbone).
        """
        super().__init__(backbone, text, optimization, lineage, start, pack_tokens, generation_batches)
        self.decoder = StageDecoder(special=text.special, max_response_tokens=max_response_tokens)

    def configure_model(self) -> None:
        """Build the model with the weights of the warm-up."""
        if self.vlm is None:
            vlm = self.build()
            if self.start is not None:
                load_weights(vlm, self.start, self.previous_stages)
            vlm.check_stored_features(self.text.vision_fingerprint)
            self.vlm = shard_if_needed(self, vlm)

    @property
    def sampler(self) -> AutoregressiveSampler:
        """Sampler of validation."""
        return self.decoder.autoregressive(self.model)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over response tokens, eos included."""
        sequence = autoregressive_sequence(
            batch.context_ids_BP, batch.context_lengths_B, batch.response_ids_BR, batch.response_lengths_B
        )
        P, R = sequence.context_width, sequence.response_width
        place_R = torch.arange(R, device=batch.response_ids_BR.device)
        real_BR = place_R[None] < batch.response_lengths_B[:, None]
        # A response token is predicted by the token before it; the first one by the last of a right-padded context.
        predicts_BT = torch.zeros_like(sequence.input_ids_BT, dtype=torch.bool)
        predicts_BT[:, P:-1] = real_BR[:, 1:]
        predicts_BT.scatter_(1, batch.context_lengths_B[:, None] - 1, True)
        logits_MV = self.logits(self.model, sequence, batch.images, predicts_BT)
        positions = all_reduce_mean(real_BR.sum()) if self.training and is_distributed() else None
        return next_token_loss(logits_MV, batch.response_ids_BR[real_BR], positions)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step."""
        return self.log_training(self.loss(batch), batch)

    def validation_loss(self, batch: Batch) -> Tensor:
        """See :meth:`loss`."""
        return self.loss(batch)
