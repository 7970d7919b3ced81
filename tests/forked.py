"""What a forked child of a test does first."""

from __future__ import annotations

import faulthandler
import threading

from tqdm import tqdm


def begin_child(patience: float = 120.0) -> None:
    """Let a forked child depend on nothing that other threads and processes of its parent hold, and not live for ever.

    The lock of progress bars is shared with the parent: a child that is killed with it keeps it, and the parent's next bar waits
    for ever. A child that still runs after ``patience`` seconds says where it is on stderr, and ends with status 1.
    """
    tqdm.set_lock(threading.RLock())
    faulthandler.dump_traceback_later(patience, exit=True, file=2)
