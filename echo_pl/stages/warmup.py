"""Before stage 1, for a vision tower with random weights: multi-label classification of the findings (METHOD.md 7).

Without it the tiny decoder stays blind for hundreds of steps while its loss looks fine. A pretrained tower needs none of this.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics.classification import MultilabelF1Score

from echo_pl.backbone.checkpoint import RECORD_KEY, StageRecord, record_dict, refuse_other_geometry
from echo_pl.backbone.factory import BackboneFactory
from echo_pl.backbone.vlm import VLM
from echo_pl.stages.optimization import Optimization
from echo_pl.stages.validation import TextTools
from echo_pl.structs import Batch


class VisionWarmup(L.LightningModule):
    """Trains the vision tower and its projector to tell the finding labels, by a linear head on the mean image token."""

    stage_name = "warmup"
    previous_stages: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        backbone: BackboneFactory,
        text: TextTools,
        optimization: Optimization,
        lineage: StageRecord,
        start: str | None = None,
    ) -> None:
        """Take everything ready-made; the model is built in ``configure_model``.

        Raises:
            ValueError: the corpus has no finding labels, or a start checkpoint was given.
        """
        super().__init__()
        if not text.labels:
            raise ValueError("the vision warm-up needs a corpus with finding labels; this one has none")
        if start is not None:
            raise ValueError(f"the vision warm-up starts from nothing, got start={start}")
        self.backbone, self.text, self.optimization, self.lineage = backbone, text, optimization, lineage
        self.vlm: VLM | None = None
        self.classifier: nn.Linear | None = None
        self.f1 = MultilabelF1Score(num_labels=len(text.labels), average="micro")

    def configure_model(self) -> None:
        """Build the model and the head (weights from the backbone's seed)."""
        if self.vlm is None:
            self.vlm = self.backbone.build(self.text.special, self.text.vocab_size)
            self.vlm.requires_grad_(False)
            self.vlm.network.model.visual.requires_grad_(True)
            self.vlm.check_stored_features(self.text.vision_fingerprint)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.classifier = nn.Linear(self.vlm.width, len(self.text.labels))

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, F) of the findings, from the mean over each study's image tokens."""
        assert self.vlm is not None, "configure_model has not run"
        assert self.classifier is not None, "configure_model has not run"
        features = self.vlm.vision_features(batch.pixel_values, batch.image_grid_thw)
        tokens_B = (batch.context_ids_BP == self.text.special.image).sum(-1)
        row = torch.repeat_interleave(torch.arange(len(batch), device=features.device), tokens_B)
        pooled = features.new_zeros(len(batch), features.shape[-1]).index_add(0, row, features) / tokens_B[:, None]
        return self.classifier(pooled)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Binary cross-entropy over all labels."""
        assert batch.labels_BF is not None
        loss = F.binary_cross_entropy_with_logits(self(batch).float(), batch.labels_BF)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Loss and micro F1 of the labels."""
        assert batch.labels_BF is not None
        logits_BF = self(batch).float()
        self.log(
            "val/loss",
            F.binary_cross_entropy_with_logits(logits_BF, batch.labels_BF),
            batch_size=len(batch),
            sync_dist=True,
        )
        self.f1(logits_BF.sigmoid(), batch.labels_BF.int())
        self.log("val/label_f1", self.f1, prog_bar=True, batch_size=len(batch))

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
