"""Checkpoints that are whole or not there, and runs that end when they are told to, at a step's end.

Knows Lightning's checkpoints and files; nothing of what is in them.
"""

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
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from echo_pl.io.atomic import replace_path
from echo_pl.io.run_folders import LAST, PREVIOUS

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What ends a run at the next step: a cluster's scheduler sends one of them some time before it kills (submitit's: SIGUSR2)."""


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` every so many steps, and keeps the one before as ``previous.ckpt``, should the last be torn.

    Args:
        folder: of the checkpoints.
        every_n_train_steps: optimizer steps.
        told: what may have written the same step before.
    """

    def __init__(self, folder: Path, every_n_train_steps: int, told: StopWhenTold) -> None:
        super().__init__(folder, filename=Path(LAST).stem, every_n_train_steps=every_n_train_steps, enable_version_counter=False)
        self._told = told

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        if self._told.stopped:
            return  # the same step is there: written twice, it would push the one before out
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
        super().__init__(f"{signal.Signals(number).name} ended the run behind a whole step; continue it with resume=auto")
        self.number = number

    def __reduce__(self) -> tuple[type[StoppedError], tuple[int]]:
        """It crosses processes: a sweep's jobs run in their own."""
        return StoppedError, (self.number,)


class StopWhenTold(Callback):
    """Ends a run behind the optimizer step in which a signal came, with a checkpoint, on all ranks at once.

    Args:
        folder: of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told = 0
        self.stopped = 0
        """The signal that ends this run, whose checkpoint is written."""
        self._step = 0
        self._listens = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count steps, from where a resumed run is."""
        self._step = trainer.global_step
        if self._listens:  # Lightning has set handlers of its own meanwhile, which end a run within an optimizer step
            self._note_signals()

    def _note_signals(self) -> None:
        def note(number: int, frame: FrameType | None) -> None:
            self._told = number

        for number in SIGNALS:
            signal.signal(number, note)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the signals instead of dying from them. Only the main thread may; elsewhere they are as they were."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._listens = True
        self._note_signals()
        try:
            yield
        finally:
            self._listens = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if any rank was told; the run ends behind the loggers, which have this step yet to write."""
        if trainer.global_step == self._step:
            return  # half an optimizer step is in no checkpoint
        self._step = trainer.global_step
        number = self._told
        if trainer.world_size > 1:
            # A signal reaches ranks at different times; they stop behind the same step.
            told = torch.tensor(float(self._told), device=pl_module.device)
            number = int(trainer.strategy.reduce(told, reduce_op="max"))
        if not number or trainer.global_step >= trainer.max_steps > 0:
            return  # behind its last step a run ends by itself
        keep_previous(trainer, self._folder / LAST)
        trainer.save_checkpoint(self._folder / LAST)
        self.stopped = number

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop before another step."""
        self._stop()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop behind the validation that this step was followed by; a resumed run would not make up for it."""
        self._stop()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at the end of an epoch."""
        self._stop()

    def _stop(self) -> None:
        if self.stopped:
            raise StoppedError(self.stopped)
