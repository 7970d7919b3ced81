"""The one writer of files and folders that appear complete or not at all.

Content is written to a partial path beside its target, synced to the disk and renamed. A reader sees the old content or the new
one. An error removes the partial; a killed process leaves it, with the suffix :data:`PARTIAL`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

PARTIAL: Final = ".partial"


def partial_path(path: Path) -> Path:
    """Partial path of a target that one process writes. The next write replaces what a killed process left there."""
    return path.with_name(path.name + PARTIAL)


@contextmanager
def atomic_path(path: Path, replace: Callable[[Path, Path], object] = os.replace) -> Iterator[Path]:
    """Yield the partial path of a file that only this process writes, for libraries that open files by name.

    Args:
        path: Target; its folder is created.
        replace: Function that renames the partial to the target.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        sync(partial)
        replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_file(path: Path | str, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a binary file that is renamed to ``path`` at the end. Several processes and threads may write the same path.

    Args:
        path: Target; its folder is created. With several writers the last one stays.
        private: True if only the owner may read the file, from its first byte on.

    Raises:
        OSError: If the file cannot be written; the old content stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(6)}{PARTIAL}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(partial, flags, 0o600 if private else 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """Create an empty folder, also over one that a killed process left, and remove what remains of it at the end."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``path`` at the end; only one process may write it."""
    with staging_folder(partial_path(path)) as partial:
        yield partial
        replace_path(partial, path)


def write_bytes_atomic(path: Path | str, content: bytes) -> Path:
    """Write a file and return its path."""
    with atomic_file(path) as file:
        file.write(content)
    return Path(path)


def write_text_atomic(path: Path | str, content: str) -> Path:
    """Write a UTF-8 file and return its path."""
    return write_bytes_atomic(path, content.encode())


def write_json(path: Path, content: object) -> Path:
    """Write a file of indented JSON, keys in their order, and return its path."""
    return write_text_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Write a file's content to the disk, so that after a power cut its name does not outlive it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def replace_path(new: Path, target: Path) -> None:
    """Replace a file or folder by another. An old folder is moved aside first, as it cannot be replaced in one step."""
    old = target.with_name(target.name + ".old")
    _remove(old)  # left by a process that was killed during its removal
    if target.exists() and (target.is_dir() or new.is_dir()):
        target.replace(old)
    new.replace(target)
    _remove(old)


def remove_partials(folder: Path) -> None:
    """Remove partial files of killed processes in a folder and in its subfolders."""
    for path in (*folder.glob(f"*{PARTIAL}"), *folder.glob(f"*/*{PARTIAL}")):
        if path.is_file():
            path.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
