"""Vision warm-up before stage 1, for a vision tower with random weights: multi-label classification of the findings.

Without it a tiny decoder ignores the image for hundreds of steps while its loss falls. A pretrained tower does not need it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MultilabelF1Score

from echo_pl.backbone.checkpoint import StageRecord
from echo_pl.backbone.factory import BackboneFactory
from echo_pl.stages.base import Stage
from echo_pl.stages.optimization import Optimization
from echo_pl.stages.validation import TextTools
from echo_pl.structs import Batch


class VisionWarmup(Stage):
    """Trains the vision tower and its projector to predict the finding labels, by a linear head on the mean image token."""

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
        """Take the ready-made parts; the model is built in ``configure_model``.

        Raises:
            ValueError: the corpus has no finding labels, or there is a start checkpoint.
        """
        super().__init__(backbone, text, optimization, lineage, start=None)
        if not text.labels:
            raise ValueError("the vision warm-up needs a corpus with finding labels; this one has none")
        if start is not None:
            raise ValueError(f"the vision warm-up starts from nothing, got start={start}")
        self.classifier: nn.Linear | None = None
        self.f1 = MultilabelF1Score(num_labels=len(text.labels), average="micro")

    def configure_model(self) -> None:
        """Build the model and the head (weights from the backbone's seed)."""
        if self.vlm is None:
            self.vlm = self.build()
            self.vlm.requires_grad_(False)
            self.vlm.network.model.visual.requires_grad_(True)
            self.vlm.check_stored_features(self.text.vision_fingerprint)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.classifier = nn.Linear(self.vlm.width, len(self.text.labels))

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, F) of the findings, from the mean over each study's image tokens."""
        assert self.classifier is not None, "configure_model has not run"
        features = self.model.vision_features(batch.pixel_values, batch.image_grid_thw)
        tokens_B = (batch.context_ids_BP == self.special.image).sum(-1)
        row = torch.repeat_interleave(torch.arange(len(batch), device=features.device), tokens_B)
        pooled = features.new_zeros(len(batch), features.shape[-1]).index_add(0, row, features) / tokens_B[:, None]
        return self.classifier(pooled)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Binary cross-entropy over all labels."""
        assert batch.labels_BF is not None
        loss = F.binary_cross_entropy_with_logits(self(batch).float(), batch.labels_BF)
        self.log_loss("train/loss", loss, batch)
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Loss and micro F1 of the labels."""
        assert batch.labels_BF is not None
        logits_BF = self(batch).float()
        loss = F.binary_cross_entropy_with_logits(logits_BF, batch.labels_BF)
        self.log("val/loss", loss, batch_size=len(batch), sync_dist=True)
        self.f1(logits_BF.sigmoid(), batch.labels_BF.int())
        self.log("val/label_f1", self.f1, prog_bar=True, batch_size=len(batch))
