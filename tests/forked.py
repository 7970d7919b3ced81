"""First actions of a forked child of a test."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import threading

import tqdm
import tqdm.auto


def begin_child(patience: float = 120.0) -> None:
    """Let a forked child depend on nothing that other threads and processes of its parent hold, and not live for ever.

    The lock of progress bars is shared with the parent: a child that is killed with it keeps it, and the parent's next bar waits
    for ever. A child that still runs after ``patience`` seconds says where it is on stderr, and ends with status 1.
    """
    for bars in (tqdm.tqdm, tqdm.auto.tqdm):  # each has its own, if it was used first
        bars.set_lock(threading.RLock())
    # Not faulthandler's own timer, which waits for the parent's, if that has one.
    timer = threading.Timer(patience, _end)
    timer.daemon = True
    timer.start()
    signal.alarm(math.ceil(patience) + 10)  # for a child in which no thread of Python gets on


def _end() -> None:
    faulthandler.dump_traceback(file=2)
    os._exit(1)
