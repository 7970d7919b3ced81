"""Stage 2: Response-Asymmetric Diffusion (RAD) turns the AR model into a block-diffusion model.

Implements docs/explain/method.md, "Stage 2: Response-Asymmetric Diffusion".

Shapes: B batch, K noisy copies, R response in whole blocks, M chosen positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from echo_pl.backbone.checkpoint import StageRecord, load_weights
from echo_pl.backbone.factory import BackboneFactory
from echo_pl.backbone.lora import LoraSettings, add_lora
from echo_pl.backbone.vlm import VLM
from echo_pl.diffusion.losses import LossWeight, masked_diffusion_loss
from echo_pl.diffusion.noise import NoiseConfig, draw_noise
from echo_pl.diffusion.sequence import block_context, block_response, rad_sequence
from echo_pl.sampling.config import DecodeConfig
from echo_pl.sampling.decoder import StageDecoder
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.stages.base import ReportStage
from echo_pl.stages.optimization import Optimization
from echo_pl.stages.parallel import all_reduce_mean, shard_if_needed
from echo_pl.stages.validation import TextTools, check_not_compiled
from echo_pl.structs import Batch


class RADModule(ReportStage):
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
        """Take the ready-made parts; the model is built in ``configure_model``.

        Args: those of :class:`ReportStage`, and
            decode: decode of validation; its block grid is the one of training.
            noise: schedule and number of noisy copies.
            loss_weight: ``elbo`` (1/t) or ``mean``.
            supervise_eos_fill: supervise the eos tokens that fill the last block.
            start: the stage-1 checkpoint, or None (a pretrained AR backbone).
            lora: train low-rank adapters alone; None: the whole language model.
        """
        super().__init__(backbone, text, optimization, lineage, start, pack_tokens, generation_batches)
        check_not_compiled(decode)
        self.decode, self.noise, self.loss_weight = decode, noise, loss_weight
        self.supervise_eos_fill, self.lora = supervise_eos_fill, lora
        self.decoder = StageDecoder(special=text.special, max_response_tokens=decode.max_response_tokens, decode=decode)

    def configure_model(self) -> None:
        """Build the model with the stage-1 weights, and freeze the vision tower."""
        if self.vlm is None:
            vlm = self.build()
            if self.start is not None:
                load_weights(vlm, self.start, self.previous_stages)
            vlm.freeze_vision()
            vlm.check_stored_features(self.text.vision_fingerprint)
            if self.lora is not None:
                add_lora(vlm, self.lora)
            self.vlm = shard_if_needed(self, vlm)

    @property
    def block_size(self) -> int:
        """L."""
        return self.decode.block_size

    @property
    def sampler(self) -> BlockSampler:
        """Sampler of validation."""
        return self.decoder.multi_step(self.model)

    def make_sampler(self, vlm: VLM, **changes: Any) -> BlockSampler:
        """The sampler of validation for another model, with some fields of its decode configuration changed."""
        return self.decoder.multi_step(vlm, **changes)

    def loss(self, batch: Batch, epoch: int) -> Tensor:
        """Masked-token cross-entropy (docs/explain/method.md, "Stage 2: Response-Asymmetric Diffusion")."""
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
        return self.log_training(self.loss(batch, self.current_epoch), batch)

    def validation_loss(self, batch: Batch) -> Tensor:
        """Loss under noise that is the same in every validation."""
        return self.loss(batch, epoch=-1)
