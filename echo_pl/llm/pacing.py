"""Waits of threads that send requests: the endpoint's rest, and waits between tries."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from tenacity import RetryCallState, wait_exponential, wait_random_exponential


class Pacing:
    """Waits before requests.

    The k-th wait of a request (from 0) is drawn between a half and the whole of ``min(longest,
    first * 2**k)`` seconds.

    Args:
        first: the first wait, in seconds.
        longest: the longest one; a rest that the endpoint asks for may be longer.
        clock: seconds, monotonic.
        wait: waits so many seconds; the default ends at once when :meth:`interrupt` is called.

    Raises:
        ValueError: negative waits, or a first wait that is longer than the longest.
    """

    def __init__(
        self,
        *,
        first: float = 1.0,
        longest: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        if not 0 <= first <= longest:
            raise ValueError(f"the first wait must be between 0 and the longest, got {first} and {longest}")
        self._first = first
        self._clock = clock
        self._interrupted = threading.Event()
        self._wait = self._interrupted.wait if wait is None else wait
        self._back_off = wait_exponential(first / 2, longest / 2) + wait_random_exponential(first / 2, longest / 2)
        self._lock = threading.Lock()
        self._resume_at = float("-inf")

    @property
    def interrupted(self) -> bool:
        """True if waiting threads are to give up."""
        return self._interrupted.is_set()

    def before_sending(self) -> None:
        """Wait until the endpoint's rest is over, and up to ``first`` more to spread threads."""
        with self._lock:
            left = self._resume_at - self._clock()
        if left > 0:
            self.sleep(left + random.uniform(0.0, self._first))

    def rest(self, seconds: float) -> None:
        """Let no thread send before so many seconds from now."""
        with self._lock:
            self._resume_at = max(self._resume_at, self._clock() + seconds)

    def back_off(self, state: RetryCallState) -> float:
        """Return the seconds before the next try."""
        return self._back_off(state)

    def sleep(self, seconds: float) -> None:
        """Wait."""
        if seconds > 0:
            self._wait(seconds)

    def interrupt(self) -> None:
        """End all waits."""
        self._interrupted.set()

    def resume(self) -> None:
        """Allow waits again."""
        self._interrupted.clear()
