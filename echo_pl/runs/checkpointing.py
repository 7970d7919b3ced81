"""Checkpoints of a run, and its end at a signal: after a whole optimizer step, with a checkpoint, on all ranks at once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint

from echo_pl.io.atomic import replace_path
from echo_pl.io.run_folders import LAST, PREVIOUS

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that end a run at the next step; a scheduler sends one of them some time before it kills (submitit: SIGUSR2)."""


class FinalCheckpoint(Checkpoint):
    """Writes ``final.ckpt`` as soon as training ends, before any observer acts at the end of the fit."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save."""
        trainer.save_checkpoint(self.path, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        """Path of the checkpoint, under the key that other checkpoint callbacks use."""
        return {"last_model_path": str(self.path)}


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` every so many steps, and keeps the one before as ``previous.ckpt``, in case the last is torn.

    Args:
        folder: of the checkpoints.
        every_n_train_steps: optimizer steps.
        stop: may have written the same step before.
    """

    def __init__(self, folder: Path, every_n_train_steps: int, stop: GracefulStop) -> None:
        super().__init__(folder, filename=Path(LAST).stem, every_n_train_steps=every_n_train_steps, enable_version_counter=False)
        self._stop = stop

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        if self._stop.stopped:
            return  # the same step is saved: a second time would push the one before out
        keep_previous(trainer, Path(filepath))
        super()._save_checkpoint(trainer, filepath)


def keep_previous(trainer: L.Trainer, last: Path) -> None:
    """Move the last checkpoint aside, before another one is written."""
    if trainer.is_global_zero and last.exists():
        replace_path(last, last.with_name(PREVIOUS))
    trainer.strategy.barrier()


class StoppedError(Exception):
    """A signal ended the run; its last step is in ``last.ckpt``."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name} ended the run after a whole step; continue it with resume=auto")
        self.number = number

    def __reduce__(self) -> tuple[type[StoppedError], tuple[int]]:
        """Pickle by number: a sweep's jobs run in their own processes."""
        return StoppedError, (self.number,)


class GracefulStop(Callback):
    """Ends a run after the optimizer step in which a signal was received.

    The handler only sets a flag; all work is done in Lightning's hooks.

    Args:
        folder: of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.signal_received = 0
        """Number of the last signal; 0: none."""
        self.stopped = 0
        """The signal that ends this run, once its checkpoint is written."""
        self._step = 0
        self._listens = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting steps, from the step of a resumed run."""
        self._step = trainer.global_step
        if self._listens:  # Lightning has meanwhile set handlers of its own, which end a run within an optimizer step
            self._set_handlers()

    def _set_handlers(self) -> None:
        def note(number: int, frame: FrameType | None) -> None:
            self.signal_received = number

        for number in SIGNALS:
            signal.signal(number, note)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the signals instead of dying from them. Only the main thread may; other threads leave the handlers as they are."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._listens = True
        self._set_handlers()
        try:
            yield
        finally:
            self._listens = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if any rank received a signal; the run ends after the loggers, which write this step later."""
        if trainer.global_step == self._step:
            return  # half an optimizer step is in no checkpoint
        self._step = trainer.global_step
        number = self.signal_received
        if trainer.world_size > 1:
            # A signal reaches ranks at different times; all stop after the same step.
            received = torch.tensor(float(number), device=pl_module.device)
            number = int(trainer.strategy.reduce(received, reduce_op="max"))
        if not number or trainer.global_step >= trainer.max_steps > 0:
            return  # after its last step a run ends by itself
        keep_previous(trainer, self._folder / LAST)
        trainer.save_checkpoint(self._folder / LAST)
        self.stopped = number

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop before another step."""
        self._raise_if_stopped()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop after the validation that follows this step; a resumed run would not repeat it."""
        self._raise_if_stopped()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at the end of an epoch."""
        self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        if self.stopped:
            raise StoppedError(self.stopped)
