"""Optimizer and learning-rate schedule of the stages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

Schedule = Literal["cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """AdamW with linear warm-up, then a cosine to ``final_share`` of the rate, or a constant rate."""

    learning_rate: float
    weight_decay: float = 0.01
    """On matrices only; biases and norms are not decayed."""
    beta2: float = 0.95
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""
    schedule: Schedule = "cosine"
    final_share: float = 0.02
    """The cosine ends at this share of the rate."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {get_args(Schedule)}, got {self.schedule!r}")
        if self.warmup_steps < 0 or self.weight_decay < 0 or not 0 <= self.final_share <= 1:
            raise ValueError(
                "warmup_steps and weight_decay must not be negative and final_share must be in [0, 1], "
                f"got {self.warmup_steps}, {self.weight_decay} and {self.final_share}"
            )

    def factor(self, step: int, total_steps: int) -> float:
        """Share of the learning rate at an optimizer step (from 0)."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
        return self.final_share + (1.0 - self.final_share) * cosine

    def configure(self, module: nn.Module, total_steps: int | float) -> OptimizerLRSchedulerConfig:
        """Return optimizer and schedule of the trained parameters, in the form of ``LightningModule.configure_optimizers``.

        Raises:
            ValueError: a cosine over a training without an end.
        """
        if self.schedule == "cosine" and not math.isfinite(total_steps):
            raise ValueError("schedule cosine needs an end to anneal to: give max_steps, or schedule=constant")
        trained = [p for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, self.beta2), foreach=True)
        steps = int(total_steps) if math.isfinite(total_steps) else 1
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, steps))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "train/lr"},
        }
