"""Signals that only set a flag, which loops check between items.

A handler that raises can leave a lock of the standard library taken for ever. Here the handler notes the signal's number, and
:func:`check_stop` raises where nothing is half done. Loops call it between items, and waits are polled by :func:`wait_some`.
A second signal ends the process at once: files are complete or absent at any moment, and workers end with their parent.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from types import FrameType
from typing import Final, TypeVar

Result = TypeVar("Result")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which a terminal or a scheduler ends a run."""
_POLL: Final = 0.1
"""Seconds between two looks at the flag during a wait."""

_is_active = False
_received = 0


class SignalledError(KeyboardInterrupt):
    """A signal requested a stop. No error, so that no ``except Exception`` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def stop_on_signals(numbers: Iterable[int] = SIGNALS) -> Iterator[None]:
    """Note signals instead of raising in the middle of other code. In an inner block or another thread it changes nothing.

    Args:
        numbers: Signals to note.

    Raises:
        SignalledError: At the end, if a signal was noted and :func:`check_stop` was not called since, or if it caused an error.
    """
    global _is_active, _received
    if _is_active or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, _note) for number in numbers}
    _is_active, _received = True, 0
    try:
        yield
    except SignalledError:
        raise
    except BaseException as error:  # also the end of a generator that holds this block
        if _received:
            raise SignalledError(_received) from error
        raise
    else:
        check_stop()
    finally:
        _is_active, _received = False, 0
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_stop() -> None:
    """Raise SignalledError if a signal has requested a stop. To be called between items of a loop in the main thread."""
    if _received and threading.current_thread() is threading.main_thread():
        raise SignalledError(_received)


def wait_some(futures: Collection[Future[Result]]) -> set[Future[Result]]:
    """Wait until at least one of several futures is done, and return those that are.

    Raises:
        SignalledError: If a signal requests a stop meanwhile.
    """
    while True:
        check_stop()
        if done := wait(futures, timeout=_POLL, return_when=FIRST_COMPLETED).done:
            return done


def wait_for(future: Future[Result]) -> Result:
    """Wait for a future and return its result. Clients that wait for other threads use it in place of ``future.result()``.

    Raises:
        SignalledError: If a signal requests a stop meanwhile.
        Exception: The error that the call raised.
    """
    wait_some([future])
    return future.result()


def _note(number: int, frame: FrameType | None) -> None:
    global _received
    if _received:
        os.write(2, f"ended by a second signal, {signal.Signals(number).name}\n".encode())
        os._exit(128 + _received)
    _received = number
