"""Stage 2: Response-Asymmetric Diffusion turns the AR model into a block-diffusion model (METHOD.md 2).

Wires sequence, noise, rule and loss; all of them live in :mod:`echo_pl.diffusion`.

Shapes: B batch, K noisy copies, R response in whole blocks, M chosen positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from echo_pl.backbone.checkpoint import RECORD_KEY, StageRecord, load_weights, record_dict, refuse_other_geometry
from echo_pl.backbone.factory import BackboneFactory
from echo_pl.backbone.lora import LoraSettings, add_lora
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.losses import LossWeight, masked_diffusion_loss
from echo_pl.diffusion.noise import NoiseConfig, draw_noise
from echo_pl.diffusion.sequence import block_context, block_response, rad_sequence
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.stages.optimization import Optimization
from echo_pl.stages.placement import shard_if_needed
from echo_pl.stages.reduction import all_reduce_mean
from echo_pl.stages.sequence_logits import SequenceLogits
from echo_pl.stages.validation import GenerationCheck, TextTools, refuse_compile
from echo_pl.structs import Batch


class RADModule(L.LightningModule):
    """Masked-token cross-entropy on ``[context | xt | x0]``; vision tower and projector are frozen."""

    stage_name = "rad"
    previous_stages = ("pretrain", "rad")

    def __init__(
        self,
        *,
        backbone: BackboneFactory,
        text: TextTools,
        optimization: Optimization,
        lineage: StageRecord,
        decode: DecodeConfig,
        noise: NoiseConfig,
        loss_weight: LossWeight = "elbo",
        supervise_eos_fill: bool = True,
        start: str | None = None,
        lora: LoraSettings | None = None,
        pack_tokens: int | None = None,
        generation_batches: int = 1,
    ) -> None:
        """Take everything ready-made; the model is built in ``configure_model``.

        Args:
            backbone: builds the model.
            text: ids and texts.
            optimization: optimizer and schedule.
            lineage: written into every checkpoint.
            decode: how to decode in validation; its block grid is the one trained on.
            noise: schedule and number of noisy copies.
            loss_weight: ``elbo`` (1/t) or ``mean``.
            supervise_eos_fill: supervise the eos tokens that fill the last block.
            start: the stage-1 checkpoint, or None (a pretrained AR backbone).
            lora: train low-rank adapters alone; None: the whole language model.
            pack_tokens: most tokens of a row of several studies; None: one study a row.
            generation_batches: validation batches that are decoded and scored.
        """
        super().__init__()
        refuse_compile(decode)
        self.backbone, self.text, self.optimization, self.lineage = backbone, text, optimization, lineage
        self.decode, self.noise, self.loss_weight, self.start = decode, noise, loss_weight, start
        self.supervise_eos_fill, self.lora = supervise_eos_fill, lora
        self.logits = SequenceLogits(pack_tokens)
        self.generation = GenerationCheck(text, generation_batches)
        self.special = text.special
        self.vlm: VLM | None = None

    def configure_model(self) -> None:
        """Build the model, take over the stage-1 weights, freeze the vision tower."""
        if self.vlm is None:
            vlm = self.backbone.build(self.text.special, self.text.vocab_size)
            if self.start is not None:
                load_weights(vlm, self.start, self.previous_stages)
            vlm.freeze_vision()
            vlm.check_stored_features(self.text.vision_fingerprint)
            if self.lora is not None:
                add_lora(vlm, self.lora)
            self.vlm = shard_if_needed(self, vlm)

    @property
    def model(self) -> VLM:
        """The model, once it has been built."""
        assert self.vlm is not None, "configure_model has not run"
        return self.vlm

    @property
    def block_size(self) -> int:
        """L."""
        return self.decode.block_size

    @property
    def sampler(self) -> BlockSampler:
        """What the stage validates with."""
        return self.make_sampler(self.model)

    def make_sampler(self, vlm: VLM, **changes: Any) -> BlockSampler:
        """A sampler like the stage's own, with some fields of its decode configuration changed."""
        return BlockSampler(vlm, self.special, replace(self.decode, **changes))

    def loss(self, batch: Batch, epoch: int) -> Tensor:
        """Masked-token cross-entropy (METHOD.md 2)."""
        special = self.special
        layout = replace(self.decode.layout, supervise_eos_fill=self.supervise_eos_fill)
        prompt = block_context(batch.context_ids_BP, batch.context_lengths_B, layout, special.image)
        blocked = block_response(prompt, batch.response_ids_BR, batch.response_lengths_B, layout, special)
        noise = draw_noise(self.noise, batch.keys, epoch, blocked.maskable_BR, layout.block_size)
        clean_BKR = blocked.clean_ids_BR[:, None].expand_as(noise.masked_BKR)
        sequence = rad_sequence(blocked, torch.where(noise.masked_BKR, special.mask, clean_BKR))
        chosen_BKR = noise.masked_BKR & blocked.supervised_BR[:, None]
        logits_MV = self.logits(self.model, sequence, batch.images, sequence.noisy_positions(chosen_BKR))
        counts = torch.stack([blocked.supervised_BR.sum() * self.noise.noise_copies, chosen_BKR.sum()])
        supervised, masked = all_reduce_mean(counts) if self.training else counts
        t_M = noise.t_BKR[chosen_BKR]
        return masked_diffusion_loss(logits_MV, clean_BKR[chosen_BKR], t_M, self.loss_weight, supervised, masked)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """One step."""
        loss = self.loss(batch, self.current_epoch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch), sync_dist=True)
        self.log_dict(self.logits.padding, batch_size=len(batch), sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Begin to collect texts."""
        self.generation.start(self.device)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Loss on every batch (always the same noise), generation on the first ones."""
        self.log("val/loss", self.loss(batch, epoch=-1), prog_bar=True, batch_size=len(batch), sync_dist=True)
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
