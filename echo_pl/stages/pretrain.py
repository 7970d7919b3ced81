"""Stage 1: autoregressive continued pre-training on normalized reports (METHOD.md 1).

Wires the rooms and logs; the loss is :func:`echo_pl.diffusion.losses.next_token_loss`.

Shapes: B batch, P context, R response, M supervised positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from echo_pl.backbone.checkpoint import RECORD_KEY, StageRecord, load_weights, record_dict, refuse_other_geometry
from echo_pl.backbone.factory import BackboneFactory
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.losses import next_token_loss
from echo_pl.diffusion.sequence import autoregressive_sequence
from echo_pl.sampling.autoregressive import AutoregressiveSampler
from echo_pl.stages.optimization import Optimization
from echo_pl.stages.placement import shard_if_needed
from echo_pl.stages.reduction import all_reduce_mean, is_distributed
from echo_pl.stages.sequence_logits import SequenceLogits
from echo_pl.stages.validation import GenerationCheck, TextTools
from echo_pl.structs import Batch


class NormalizedPretrain(L.LightningModule):
    """Next-token cross-entropy on the response; the context is masked out of the loss. All parameters are trained."""

    stage_name = "pretrain"
    previous_stages = ("warmup", "pretrain")

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
        """Take everything ready-made; the model is built in ``configure_model``.

        Args:
            backbone: builds the model.
            text: ids and texts.
            optimization: optimizer and schedule.
            lineage: written into every checkpoint.
            max_response_tokens: limit of validation decodes.
            start: checkpoint of the vision warm-up, or None (a pretrained backbone).
            pack_tokens: most tokens of a row of several studies; None: one study a row.
            generation_batches: validation batches that are decoded and scored.
        """
        super().__init__()
        self.backbone, self.text, self.optimization, self.lineage = backbone, text, optimization, lineage
        self.start, self.max_response_tokens = start, max_response_tokens
        self.logits = SequenceLogits(pack_tokens)
        self.generation = GenerationCheck(text, generation_batches, in_blocks=False)
        self.special = text.special
        self.vlm: VLM | None = None

    def configure_model(self) -> None:
        """Build the model and take over the warm-up's weights."""
        if self.vlm is None:
            vlm = self.backbone.build(self.text.special, self.text.vocab_size)
            if self.start is not None:
                load_weights(vlm, self.start, self.previous_stages)
            vlm.check_stored_features(self.text.vision_fingerprint)
            self.vlm = shard_if_needed(self, vlm)

    @property
    def model(self) -> VLM:
        """The model, once it has been built."""
        assert self.vlm is not None, "configure_model has not run"
        return self.vlm

    @property
    def sampler(self) -> AutoregressiveSampler:
        """What the stage validates with."""
        return AutoregressiveSampler(self.model, self.special, self.max_response_tokens)

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
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch), sync_dist=True)
        self.log_dict(self.logits.padding, batch_size=len(batch), sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin to collect texts."""
        self.generation.start(self.device)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Loss on every batch, generation on the first ones."""
        self.log("val/loss", self.loss(batch), prog_bar=True, batch_size=len(batch), sync_dist=True)
        self.generation.update(self.sampler, batch, batch_index)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the generated reports."""
        self.log_dict(self.generation.compute(), prog_bar=False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """See :class:`Optimization`."""
        return self.optimization.configure(self, self.trainer.estimated_stepping_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say where the checkpoint comes from."""
        checkpoint[RECORD_KEY] = record_dict(self.lineage, self.vlm)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of the same shapes and another meaning."""
        assert self.vlm is not None, "configure_model has not run"
        refuse_other_geometry(checkpoint[RECORD_KEY].get("geometry"), self.vlm.geometry, "the checkpoint to resume")
