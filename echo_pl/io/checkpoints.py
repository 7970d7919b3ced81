"""Atomic checkpoint files."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from echo_pl.io.atomic import atomic_path, replace_path, sync


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the place, then renames. (Lightning's own writes to the system's temporary folder, then copies.)"""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full; the checkpoint before is kept.
        """
        place = Path(path)
        with atomic_path(place, replace_path) as partial:
            try:
                # A file object, as torch's own writer does not report a full disk as such.
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                sync(partial)
            except (OSError, RuntimeError) as error:
                if full := disk_full_error(place, error):
                    raise full from error
                raise


_FULL = 10**8
"""Bytes; a disk with more of them free is not full."""


def disk_full_error(place: Path, error: BaseException) -> OSError | None:
    """Return the error to raise if a checkpoint failed for lack of space; call it before the partial file is removed."""
    free = shutil.disk_usage(next(folder for folder in place.parents if folder.exists())).free
    if free > _FULL and not _reports_full_disk(error):  # some of torch's writers report only that they failed
        return None
    return OSError(errno.ENOSPC, f"cannot write a checkpoint ({free / 1e6:.0f} MB free): make room, then resume=auto", str(place))


def _reports_full_disk(error: BaseException) -> bool:
    """Return True if an error, or one of its causes on any rank, reports a full disk or quota."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        todo += [one.__cause__, one.__context__, *(failure[0] for failure in getattr(one, "failures", {}).values())]
    return False
