"""Loaders: one pass in fixed order, and endless epochs that can be left and taken up again at any batch.

The state of the latter is two numbers, the same on every rank, which Lightning keeps in checkpoints by itself. Neither
knows of shards. They wrap torch's DataLoader, so that Lightning neither replaces their sampler nor doubts their length.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping

import torch
from torch.utils.data import DataLoader, IterableDataset

from echo_pl.data.loading.stream import BatchStream
from echo_pl.structs import Batch


def ignore_scheduler_signals(worker: int) -> None:
    """Let a loading process live on when a scheduler signals all processes of a job: the training process ends the run and then it.

    SIGUSR1, SIGUSR2 and a SIGTERM that is not of the training process are ignored (on macOS, which does not say of whom it is, a
    SIGTERM is what it was).
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        training = multiprocessing.parent_process()  # not the parent of the operating system, which may be a server of forks
        assert training is not None, "not in a loading process"
        threading.Thread(target=_end_when_told_by, args=(training.pid,), daemon=True).start()


def _end_when_told_by(process: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)


class Epochs(IterableDataset[Batch]):
    """One epoch each time it is iterated, and the next one the next time.

    A loading process that lives on from epoch to epoch counts them here by itself; it is notified of
    the start of an epoch, not of its number.

    Args:
        make_stream: As of :class:`ResumableLoader`.
        epoch: The first one.
        done: Batches to leave out at its start.
    """

    def __init__(self, make_stream: Callable[[int, int], BatchStream], epoch: int, done: int) -> None:
        super().__init__()
        self._make_stream = make_stream
        self._epoch = epoch
        self._done = done

    def __iter__(self) -> Iterator[Batch]:
        stream = self._make_stream(self._epoch, self._done)
        self._epoch, self._done = self._epoch + 1, 0
        return iter(stream)


def _torch_loader(
    batches: IterableDataset[Batch], *, num_workers: int, pin_memory: bool, prefetch_batches: int, lasting: bool
) -> DataLoader[Batch]:
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=ignore_scheduler_signals,
        prefetch_factor=prefetch_batches if num_workers else None,
        persistent_workers=lasting and num_workers > 0,
        generator=torch.Generator(),  # else the seed of the workers, which they do not use, is drawn from that of the training
    )


def _batches_of(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Iterate a loader; an error of a loading process comes without torch's own frames, its text has the frames of that process.

    Those would hold torch's iterator in a cycle with the error. Python closes the queues of such a cycle before the iterator can
    tell the processes over them to end, and whatever thread collects it waits 5 s for each.
    """
    try:
        yield from loader
    except Exception as error:
        if loader.num_workers == 0:
            raise
        raise error.with_traceback(None) from None


class FixedLoader:
    """Yields the batches of one stream, the same each time.

    Args:
        stream: What to read.
        num_workers: Processes that read and decode, and end with the pass; 0: this one.
        pin_memory: Whether batches are put in page-locked memory.
        prefetch_batches: Batches that each process has ready or at work; without processes there are none ahead.
    """

    def __init__(self, stream: BatchStream, *, num_workers: int, pin_memory: bool, prefetch_batches: int = 2) -> None:
        self._batches = len(stream)
        self._loader = _torch_loader(
            stream, num_workers=num_workers, pin_memory=pin_memory, prefetch_batches=prefetch_batches, lasting=False
        )

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        return _batches_of(self._loader)


class ResumableLoader:
    """Yields the batches of one epoch after the other, each time it is iterated.

    Args:
        make_stream: From (epoch, batches to leave out at its start) to the stream of the rest.
        batches: Batches in one epoch. Lightning does not read ahead in a loader with a length, so the state is exact.
        order: What decides the order of studies, as text: a place in an epoch means nothing in another order.
        num_workers: Processes that read and decode, from the first epoch to the last; 0: this one.
        pin_memory: Whether batches are put in page-locked memory.
        prefetch_batches: Batches that each of these processes has ready or at work.
    """

    def __init__(
        self,
        make_stream: Callable[[int, int], BatchStream],
        *,
        batches: int,
        order: str,
        num_workers: int,
        pin_memory: bool,
        prefetch_batches: int = 2,
    ) -> None:
        self._make_stream = make_stream
        self._order = order
        self._batches = batches
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._prefetch_batches = prefetch_batches
        self._loader: DataLoader[Batch] | None = None
        self._next_epoch = 0
        self._epoch = 0
        self._done = 0
        self._skip = 0

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        self._epoch, self._done, self._skip = self._next_epoch, self._skip, 0
        # counted now and not at the end: with a length, the trainer does not read an epoch until it is exhausted
        self._next_epoch = self._epoch + 1
        if self._loader is None:
            self._loader = _torch_loader(
                Epochs(self._make_stream, self._epoch, self._done),
                num_workers=self._num_workers,
                pin_memory=self._pin_memory,
                prefetch_batches=self._prefetch_batches,
                lasting=True,
            )
        for batch in _batches_of(self._loader):
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int | str]:
        """Position of the loader: epoch and number of its batches handed out, equal on every rank."""
        return {"epoch": self._epoch, "batches_done": self._done, "order": self._order}

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Go on from there the next time the loader is iterated.

        Raises:
            ValueError: If the state is from a loader with longer epochs or another order of studies, as after a change of data,
                seed or global batch size.
        """
        epoch, done = int(state["epoch"]), int(state["batches_done"])
        if state.get("order", self._order) != self._order:  # checkpoints of before do not say
            raise ValueError(
                f"the checkpoint is from an order of studies with {state['order']}, this run has {self._order}: resume with the "
                "same settings, or begin a new run with start="
            )
        if done > self._batches:
            raise ValueError(
                f"the checkpoint is at batch {done} of its epoch, but an epoch now has {self._batches}; "
                "resume with the same corpus and global batch size"
            )
        self._epoch, self._done = epoch, done
        ended = done == self._batches
        self._next_epoch, self._skip = (epoch + 1, 0) if ended else (epoch, done)
        self._loader = None  # its processes would go on where they are
