"""Tasks in other processes, or in this one. Workers end when their parent ends, also when it is killed.

A run that ends early ends its workers in the middle of a task: what they write is complete or absent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Final, TypeVar

from echo_pl.io.stop_signals import check_stop, stop_on_signals, wait_some

Task = TypeVar("Task")
Result = TypeVar("Result")

IGNORED: Final = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a terminal or a scheduler sends to all processes of a job. The parent answers them; SIGTERM ends a worker."""
_SIGNAL_DELAY: Final = 0.5
"""Seconds that a signal may take to reach this process after its workers."""


class Workers:
    """Context manager of processes that share tasks. Meanwhile signals are noted, see :mod:`echo_pl.io.stop_signals`.

    Args:
        count: Number of processes; 0: this one.

    Raises:
        ValueError: If it is negative.
    """

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"workers must not be negative, got {count}")
        self._count = count
        self._executor: ProcessPoolExecutor | None = None
        self._others: frozenset[BaseProcess] = frozenset()
        self._signals = ExitStack()

    def __enter__(self) -> Workers:
        if self._count:
            self._signals.enter_context(stop_on_signals((signal.SIGINT,)))
            self._others = frozenset(multiprocessing.active_children())
            self._executor = ProcessPoolExecutor(self._count, multiprocessing.get_context("spawn"), initializer=_initialize)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._executor is None:
            return
        with self._signals:
            if kind is not None:
                for worker in frozenset(multiprocessing.active_children()) - self._others:
                    worker.terminate()
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the result of each task as it is finished, in any order. Tasks are taken as workers are free for them.

        Raises:
            RuntimeError: If a worker has died.
            SignalledError: If a signal requested a stop.
        """
        remaining, running = iter(tasks), set[Future[Result]]()
        if self._executor is None:
            for task in remaining:
                check_stop()
                yield function(task)
            return
        try:
            while True:
                for task in islice(remaining, 2 * self._count - len(running)):
                    running.add(self._submit(self._executor, function, task))
                if not running:
                    return
                for future in wait_some(running):
                    running.remove(future)
                    yield future.result()
        except BrokenProcessPool as error:
            time.sleep(_SIGNAL_DELAY)  # a signal to the whole job ends workers at once and reaches this process too
            check_stop()
            raise RuntimeError("a worker process has died, perhaps for want of memory: try fewer workers") from error

    @staticmethod
    def _submit(executor: ProcessPoolExecutor, function: Callable[[Task], Result], task: Task) -> Future[Result]:
        # Submitting may start a worker, which inherits the mask: it ignores these signals from its first instruction on.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        try:
            return executor.submit(function, task)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _initialize() -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)
