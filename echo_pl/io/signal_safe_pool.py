"""Tasks for an executor, from a thread in which signals may raise.

What a signal's handler raises in the main thread, as Ctrl-C does, can come in the middle of the Python code of concurrent.futures
and leave one of its locks taken for ever: its threads wait for that lock, and its shutdown for its threads. Here another thread
gives the executor its tasks, and the main thread waits in ``queue.SimpleQueue``, which is C and whole at any moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class SignalSafePool(Generic[Result]):
    """Hands tasks to an executor. To be entered; when it is left, all that was submitted is the executor's, and is not waited for.

    Args:
        executor: given tasks by nobody else meanwhile; its shutdown is its owner's, behind this.
        begin: called first in the thread that does so.
    """

    def __init__(self, executor: Executor, begin: Callable[[], None] | None = None) -> None:
        self._asked: SimpleQueue[tuple[int, Callable[..., Result], tuple[Any, ...]] | None] = SimpleQueue()
        self._finished: SimpleQueue[tuple[int, Future[Result]]] = SimpleQueue()
        self._early: dict[int, Future[Result]] = {}
        self._submitted = 0
        # A daemon: a signal that comes while it starts may leave it waiting, and the interpreter must not wait for it then.
        self._thread = threading.Thread(target=self._hand_over, args=(executor, begin), daemon=True)

    def __enter__(self) -> SignalSafePool[Result]:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._asked.put(None)
        self._thread.join()

    def submit(self, function: Callable[..., Result], *args: Any) -> int:
        """Have a call made; its number, from 0 on."""
        number = self._submitted
        self._submitted += 1
        self._asked.put((number, function, args))
        return number

    def next_finished(self) -> tuple[int, Future[Result]]:
        """Wait for whichever call ends next: its number, and what became of it. Each is given once."""
        return self._early.popitem() if self._early else self._finished.get()

    def result(self, number: int) -> Result:
        """Wait for one call, which was not given yet: what it returned.

        Raises:
            Exception: what it raised.
        """
        while number not in self._early:
            other, future = self._finished.get()
            self._early[other] = future
        return self._early.pop(number).result()

    def _hand_over(self, executor: Executor, begin: Callable[[], None] | None) -> None:
        if begin is not None:
            begin()
        while (call := self._asked.get()) is not None:
            number, function, args = call
            try:
                future = executor.submit(function, *args)
            except Exception as error:  # the executor is broken, which the caller learns as of any other call
                future = Future()
                future.set_exception(error)
            future.add_done_callback(lambda future, number=number: self._finished.put((number, future)))  # type: ignore[misc]
