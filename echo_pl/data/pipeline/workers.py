"""Runs tasks in other processes, or in this one, and ends them when this one ends, however it does.

A worker looks after every study whether it is to stop, and goes when its parent is gone: a killed run leaves nobody behind who
writes. Knows nothing of what tasks do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing.context import SpawnContext
from multiprocessing.synchronize import Event
from typing import Final, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

SPARED: Final = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a terminal or a scheduler sends to a whole job. The parent answers them; SIGTERM ends a worker as ever."""
_PATIENCE: Final = 0.5
"""Seconds that a signal may take to reach this process after its workers."""

_told_to_stop: list[Event] = []
"""In a worker: the event that says so."""


class StoppedError(RuntimeError):
    """The run is over; this task is not finished."""


def go_on() -> None:
    """Say that a task may take up its next study.

    Raises:
        StoppedError: it may not.
    """
    if any(event.is_set() for event in _told_to_stop):
        raise StoppedError


class Workers:
    """Processes that share tasks.

    Args:
        count: of processes; 0: this one.

    Raises:
        ValueError: it is negative.
    """

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"workers must not be negative, got {count}")
        self._count = count
        self._pool: ProcessPoolExecutor | None = None
        self._stop: Event | None = None

    def __enter__(self) -> Workers:
        if self._count:
            context: SpawnContext = multiprocessing.get_context("spawn")
            with _blocked():  # what is started here inherits it: a worker is deaf to these from its first instruction on
                self._stop = context.Event()
                self._pool = ProcessPoolExecutor(self._count, context, initializer=_begin, initargs=(self._stop,))
                self._pool.submit(os.getpid)  # starts them all
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None and self._stop is not None:
            self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the result of each task as it is finished, in any order. Tasks are taken as there is room for them.

        Raises:
            RuntimeError: a worker has died.
        """
        if self._pool is None:
            yield from map(function, tasks)
            return
        remaining = iter(tasks)
        running: set[Future[Result]] = set()
        try:
            while True:
                running |= {self._pool.submit(function, task) for task in islice(remaining, 2 * self._count - len(running))}
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            time.sleep(_PATIENCE)  # a signal to the whole job ends workers at once and reaches this process too
            raise RuntimeError("a worker process has died, perhaps for want of memory: try fewer workers") from error


@contextmanager
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SPARED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(stop: Event) -> None:
    """First thing in a worker."""
    for number in SPARED:
        signal.signal(number, signal.SIG_IGN)
    _told_to_stop.append(stop)
    threading.Thread(target=_go_with_parent, daemon=True).start()


def _go_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)
