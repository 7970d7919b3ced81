"""Losses that are not finite: the run ends and names the studies, or the optimizer step is skipped and counted."""

from __future__ import annotations

import logging
from typing import Any, Literal, get_args

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

log = logging.getLogger(__name__)

OnNonFinite = Literal["error", "skip"]


class NonFiniteLossError(ValueError):
    """A loss is not finite, and the configuration is to stop then."""


class NonFiniteLoss(Callback):
    """Checks every loss before its backward, on all ranks together, so that none that is not finite changes a weight.

    Args:
        action: ``error`` ends the run, ``skip`` skips the optimizer step (all batches that it accumulates) and counts it as
            ``train/skipped_steps``.

    Raises:
        ValueError: another action.
    """

    def __init__(self, action: OnNonFinite) -> None:
        if action not in get_args(OnNonFinite):
            raise ValueError(f"stage.on_nonfinite_loss must be one of {get_args(OnNonFinite)}, got {action!r}")
        self._action = action
        self._keys: tuple[str, ...] = ()
        self._skip = False
        self.skipped = 0
        """Optimizer steps skipped, those before a resume included."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the studies of the next loss."""
        self._keys = tuple(batch.keys)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Check a loss.

        Raises:
            NonFiniteLossError: it is not finite, here or on another rank.
        """
        # Later the gradients mix with those of other ranks.
        keys = _keys_of_all_ranks(trainer, () if bool(torch.isfinite(loss.detach()).all()) else self._keys)
        if not keys:
            return
        where = f"the loss of optimizer step {trainer.global_step + 1} is not finite; studies of the batch: {', '.join(keys)}"
        if self._action == "error":
            raise NonFiniteLossError(f"{where}. Look at them, lower the learning rate, or set stage.on_nonfinite_loss=skip")
        log.warning("%s; this step is skipped", where)
        self._skip = True

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Remove the gradients of a step that is skipped; an optimizer does not change parameters without one."""
        if not self._skip:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self._skip = False
        self.skipped += 1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the count at every step from the first one on: loggers write some of the steps only."""
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped), batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """Save the count."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count."""
        self.skipped = int(state_dict["skipped"])


def _keys_of_all_ranks(trainer: L.Trainer, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Gather the keys of all ranks. The common case sends one number; names are sent only if there are some."""
    if trainer.world_size == 1:
        return keys
    found = torch.tensor(float(bool(keys)), device=trainer.strategy.root_device)
    dist.all_reduce(found)
    if not float(found):
        return ()
    everyone: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(everyone, keys)
    return tuple(key for of_rank in everyone for key in of_rank)
