"""When to send again: exponential back-off with jitter, and a rest of all threads while the endpoint asks for one.

Knows seconds; nothing of HTTP. The clock and the waiting can be put in from outside.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable


class Pacing:
    """Waits between the tries of requests that several threads send.

    The k-th wait of a request (from 0) is drawn between a half and the whole of ``min(longest, first * 2**k)`` seconds.

    Args:
        first: the first wait, in seconds.
        longest: no wait is longer, but for one that the endpoint asks for.
        clock: seconds that only go forward.
        wait: waits so many seconds; the default ends at once when :meth:`interrupt` is called.
        seed: of the jitter; None draws it anew in each process, so that two of them do not come back at the same time.

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
        seed: int | None = None,
    ) -> None:
        if not 0 <= first <= longest:
            raise ValueError(f"the first wait must be between 0 and the longest, got {first} and {longest}")
        self.first = first
        self.longest = longest
        self._clock = clock
        self._interrupted = threading.Event()
        self._wait = self._interrupted.wait if wait is None else wait
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._resume_at = float("-inf")

    @property
    def interrupted(self) -> bool:
        """Whether those who wait are to give up."""
        return self._interrupted.is_set()

    def before_sending(self) -> None:
        """Wait until the rest that the endpoint asked for is over, and up to ``first`` more: not all come back at once."""
        with self._lock:
            left, more = self._resume_at - self._clock(), self._random.uniform(0.0, self.first)
        if left > 0:
            self._wait(left + more)

    def rest(self, seconds: float) -> None:
        """Let nobody send before so many seconds from now."""
        with self._lock:
            self._resume_at = max(self._resume_at, self._clock() + seconds)

    def back_off(self, tries: int) -> None:
        """Wait before a request is sent again that was tried ``tries`` times."""
        with self._lock:
            share = self._random.uniform(0.5, 1.0)
        # The power is bounded so that a great number of tries is no overflow.
        if (seconds := share * min(self.longest, self.first * 2.0 ** min(tries - 1, 60))) > 0:
            self._wait(seconds)

    def interrupt(self) -> None:
        """End all waits."""
        self._interrupted.set()

    def go_on(self) -> None:
        """Wait again from now on."""
        self._interrupted.clear()
