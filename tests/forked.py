"""What a forked child of a test does first."""

from __future__ import annotations

import threading

from tqdm import tqdm


def leave_shared_locks() -> None:
    """Let progress bars of this process have a lock of their own.

    The usual one is shared with the parent: a child that is killed with it keeps it, and the parent's next bar waits for ever.
    """
    tqdm.set_lock(threading.RLock())
