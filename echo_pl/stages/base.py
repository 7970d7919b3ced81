"""Shared parts of the stages: the model's life cycle, optimizer, checkpoint record, and validation by decoded reports.

A stage adds its loss and its sampler. No stage inherits from another stage.
"""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from echo_pl.backbone.checkpoint import RECORD_KEY, StageRecord, check_geometry, record_dict
from echo_pl.backbone.factory import BackboneFactory
from echo_pl.backbone.vlm import VLM
from echo_pl.sampling.autoregressive import AutoregressiveSampler
from echo_pl.sampling.sampler import BlockSampler
from echo_pl.stages.optimization import Optimization
from echo_pl.stages.sequence_logits import SequenceLogits
from echo_pl.stages.validation import GenerationCheck, TextTools
from echo_pl.structs import Batch


class Stage(L.LightningModule):
    """A stage with one model, built in ``configure_model``."""

    stage_name: str
    previous_stages: tuple[str, ...]
    """Stages whose checkpoints this one may start from."""

    def __init__(
        self, backbone: BackboneFactory, text: TextTools, optimization: Optimization, lineage: StageRecord, start: str | None
    ) -> None:
        super().__init__()
        self.backbone, self.text, self.optimization = backbone, text, optimization
        self.lineage, self.start, self.special = lineage, start, text.special
        self.vlm: VLM | None = None

    @property
    def model(self) -> VLM:
        """The model, once it has been built."""
        assert self.vlm is not None, "configure_model has not run"
        return self.vlm

    def build(self) -> VLM:
        """A model with initial weights."""
        return self.backbone.build(self.text.special, self.text.vocab_size)

    def log_loss(self, name: str, loss: Tensor, batch: Batch) -> None:
        """Log a loss, averaged over ranks."""
        self.log(name, loss, prog_bar=True, batch_size=len(batch), sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """See :class:`Optimization`."""
        return self.optimization.configure(self, self.trainer.estimated_stepping_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record of this checkpoint's origin."""
        checkpoint[RECORD_KEY] = record_dict(self.lineage, self.vlm)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ValueError for weights of the same shapes and another meaning."""
        check_geometry(checkpoint[RECORD_KEY].get("geometry"), self.model.geometry, "the checkpoint to resume")


class ReportStage(Stage):
    """A stage whose model writes reports: its validation decodes the first batches and scores the texts."""

    in_blocks = True
    """The model decodes in blocks, so there is a number of forwards per block."""

    def __init__(
        self,
        backbone: BackboneFactory,
        text: TextTools,
        optimization: Optimization,
        lineage: StageRecord,
        start: str | None,
        pack_tokens: int | None,
        generation_batches: int,
    ) -> None:
        """Take the ready-made parts of every stage.

        Args:
            backbone: builds the model.
            text: ids and texts.
            optimization: optimizer and schedule.
            lineage: record for every checkpoint.
            start: checkpoint with the initial weights; None: those of the backbone.
            pack_tokens: most tokens of a row of several studies; None: one study per row.
            generation_batches: validation batches that are decoded and scored.
        """
        super().__init__(backbone, text, optimization, lineage, start)
        self.logits = SequenceLogits(pack_tokens)
        self.generation = GenerationCheck(text, generation_batches, in_blocks=self.in_blocks)

    @property
    def sampler(self) -> BlockSampler | AutoregressiveSampler:
        """Sampler of validation."""
        raise NotImplementedError

    def validation_loss(self, batch: Batch) -> Tensor:
        """Loss of a validation batch."""
        raise NotImplementedError

    def log_training(self, loss: Tensor, batch: Batch) -> Tensor:
        """Log a training loss, and the padding of packed rows."""
        self.log_loss("train/loss", loss, batch)
        self.log_dict(self.logits.padding, batch_size=len(batch), sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start to collect texts."""
        self.generation.start(self.device)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Log the loss of every batch; decode the first ones."""
        self.log_loss("val/loss", self.validation_loss(batch), batch)
        self.generation.update(self.sampler, batch, batch_index)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the generated reports."""
        self.log_dict(self.generation.compute(), prog_bar=False)
