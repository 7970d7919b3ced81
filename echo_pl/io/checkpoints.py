"""Checkpoint files that are whole or absent."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from echo_pl.io.atomic import atomic_path, replace_path, sync


class WholeFileIO(TorchCheckpointIO):
    """Writes beside the place, then renames. (Lightning's own writes in the system's folder for temporary files, then copies.)"""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, or leave what is there.

        Raises:
            OSError: the disk is full; the checkpoint before stays.
        """
        place = Path(path)
        with atomic_path(place, replace_path) as partial:
            try:
                # A file object, as torch's own writer does not report that the disk is full.
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                sync(partial)
            except (OSError, RuntimeError) as error:
                if full := full_disk(place, error):
                    raise full from error
                raise


_ROOM = 10**8
"""Bytes; a disk with more of them free is not full."""


def full_disk(place: Path, error: BaseException) -> OSError | None:
    """The error of a checkpoint that had no room, if that is what went wrong; ask before what was half written is removed."""
    free = shutil.disk_usage(next(folder for folder in place.parents if folder.exists())).free
    if free > _ROOM and not _no_room(error):  # some of torch's writers say only that they failed
        return None
    return OSError(errno.ENOSPC, f"cannot write a checkpoint ({free / 1e6:.0f} MB free): make room, then resume=auto", str(place))


def _no_room(error: BaseException) -> bool:
    """Whether an error, or one that it comes from on any rank, says that a disk or a quota is full."""
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
