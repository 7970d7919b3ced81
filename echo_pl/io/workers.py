"""Runs tasks in other processes, or in this one, and ends them when this one ends, however it does.

A run that ends early ends its workers where they are: what they write is whole or not there. A worker whose parent is killed
goes by itself. Knows nothing of what tasks do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Any, Final, TypeVar

from echo_pl.io.signal_safe_pool import SignalSafePool

Task = TypeVar("Task")
Result = TypeVar("Result")

SPARED: Final = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that a terminal or a scheduler sends to all of a job. The parent answers them; SIGTERM ends a worker as ever."""
_PATIENCE: Final = 0.5
"""Seconds that a signal may take to reach this process after its workers."""


class Workers:
    """Processes that share tasks. To be entered.

    Args:
        count: of processes; 0: this one.

    Raises:
        ValueError: it is negative.
    """

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"workers must not be negative, got {count}")
        self._count = count
        self._executor: ProcessPoolExecutor | None = None
        self._pool: SignalSafePool[Any] | None = None
        self._others: frozenset[BaseProcess] = frozenset()

    def __enter__(self) -> Workers:
        if self._count:
            self._others = frozenset(multiprocessing.active_children())
            self._executor = ProcessPoolExecutor(self._count, multiprocessing.get_context("spawn"), initializer=_begin)
            self._pool = SignalSafePool(self._executor, _hold_signals).__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._pool is None or self._executor is None:
            return
        early = kind is not None
        try:
            self._pool.__exit__()  # no worker is about to start from here on
        except BaseException:  # another signal
            early = True
            raise
        finally:
            if early:
                for worker in frozenset(multiprocessing.active_children()) - self._others:
                    worker.terminate()
            self._executor.shutdown(wait=True, cancel_futures=True)
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
        running: set[int] = set()
        try:
            while True:
                for task in islice(remaining, 2 * self._count - len(running)):
                    running.add(self._pool.submit(function, task))
                if not running:
                    return
                number, future = self._pool.next_finished()
                if number in running:  # else it is of a run that was left early
                    running.remove(number)
                    yield future.result()
        except BrokenProcessPool as error:
            time.sleep(_PATIENCE)  # a signal to the whole job ends workers at once and reaches this process too
            raise RuntimeError("a worker process has died, perhaps for want of memory: try fewer workers") from error


def _hold_signals() -> None:
    """A worker is deaf to these from its first instruction on: it inherits this from the thread that starts it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SPARED)


def _begin() -> None:
    """First thing in a worker."""
    for number in SPARED:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_go_with_parent, daemon=True).start()


def _go_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)
