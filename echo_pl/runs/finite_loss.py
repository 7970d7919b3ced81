"""What happens when a loss is not finite: the run ends and names the studies, or the optimizer step is left out and counted.

Knows Lightning's hooks and a batch's keys; nothing of losses.
"""

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
    """A loss is not finite, and the configuration says to stop then."""


class NonFiniteLoss(Callback):
    """Looks at every loss before its backward, on all ranks together, so that no weight is touched by one that is not finite.

    Args:
        action: ``error`` ends the run, ``skip`` leaves out the optimizer step (all batches that it accumulates) and counts it as
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
        """Optimizer steps left out, those before a resume included."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Note whose loss comes next."""
        self._keys = tuple(batch.keys)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Look at a loss.

        Raises:
            NonFiniteLossError: it is not finite, here or on another rank.
        """
        # The loss is that of the optimizer step's share, and it is the last look before gradients mix with those of other ranks.
        keys = _of_ranks(trainer, () if bool(torch.isfinite(loss.detach()).all()) else self._keys)
        if not keys:
            return
        where = f"the loss of optimizer step {trainer.global_step + 1} is not finite; studies of the batch: {', '.join(keys)}"
        if self._action == "error":
            raise NonFiniteLossError(f"{where}. Look at them, lower the learning rate, or set stage.on_nonfinite_loss=skip")
        log.warning("%s; this step is left out", where)
        self._skip = True

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Take the gradients away from a step that is left out; an optimizer leaves parameters without one as they are."""
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
        """Log the count from the first one on, at every step: loggers look at some of them only."""
        if self.skipped:
            pl_module.log("train/skipped_steps", float(self.skipped), batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = int(state_dict["skipped"])


def _of_ranks(trainer: L.Trainer, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Keys of all ranks that have some. The common case costs one number; the names travel when they are needed."""
    if trainer.world_size == 1:
        return keys
    found = torch.tensor(float(bool(keys)), device=trainer.strategy.root_device)
    dist.all_reduce(found)
    if not float(found):
        return ()
    everyone: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(everyone, keys)
    return tuple(key for of_rank in everyone for key in of_rank)
