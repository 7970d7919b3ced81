"""A bounded local cache of files that are known by their checksum, shared by every process of a node.

``<folder>/<sha256>/<name>``, written under a temporary name, checked, renamed: what has its final name came whole. What the disk
did to it since is found by its checksum, which every process takes once of every file. Least recently used goes first, never what
somebody holds. Locks are the kernel's (flock) and end with their process: one is shared by all who hold a file, and one is had by
who fetches it, for as long only.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from echo_pl.io.atomic import PARTIAL, sync

logger = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOCK = "lock"
_FETCHING = "fetching"
Fetch = Callable[[Path], None]
"""Writes the file to a path, over what is there."""


class ChecksumError(ValueError):
    """The checksum of a downloaded file is not that of the index."""


class CacheFullError(ValueError):
    """There is no room: everything else in the cache is in use, or the file is larger than the cache."""


class CachedFile(Protocol):
    """A file known by its checksum."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def bytes(self) -> int: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102


class FileCache:
    """The cache.

    Args:
        folder: Created if need be; on a local disk.
        most_bytes: Of all files together, those on their way included.

    Raises:
        ValueError: If ``most_bytes`` is less than 1.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        if most_bytes < 1:
            raise ValueError(f"cache_bytes must be at least 1, got {most_bytes}")
        self.folder = folder
        self.most_bytes = most_bytes
        self._checked: set[tuple[str, int, int]] = set()
        """sha256, inode and time of change of the files whose checksum this process has found right."""

    @contextmanager
    def holding(self, file: CachedFile, fetch: Fetch) -> Iterator[Path]:
        """Hold a file: fetched if it is not there, and not evicted inside the ``with``.

        Args:
            file: Its last name is that of the file in the cache.
            fetch: Called at most twice, by one process at a time.

        Yields:
            The folder with the file in it.

        Raises:
            ChecksumError: If what was fetched has another checksum or size, twice.
            CacheFullError: If there is no room for it.
            OSError: Of ``fetch`` and of the disk.
        """
        if not _SHA256.fullmatch(file.sha256):
            raise ChecksumError(f"the index has no sha256 of {file.name} but {file.sha256!r}; make the corpus again")
        entry = self.folder / file.sha256
        path = entry / file.name.rsplit("/", 1)[-1]
        entry.mkdir(parents=True, exist_ok=True)
        with _locked(entry / _LOCK, fcntl.LOCK_SH):
            if not self._is_complete(path, file):
                # A lock of its own: an exclusive one on _LOCK would wait until all readers of the file have released it.
                with _locked(entry / _FETCHING, fcntl.LOCK_EX):
                    if not self._is_complete(path, file):
                        self._download(path, file, fetch)
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # what was used last goes last
            yield entry

    def check_fits(self, file: CachedFile) -> None:
        """Check that the whole cache has room for a file.

        Raises:
            CacheFullError: If it is larger than the cache.
        """
        if file.bytes > self.most_bytes:
            raise CacheFullError(
                f"{file.name} has {file.bytes} bytes, more than the cache may hold: raise data.cache_bytes={self.most_bytes}"
            )

    def _is_complete(self, path: Path, file: CachedFile) -> bool:
        found = _stat(path)
        if found is None or found.st_size != file.bytes:
            return False
        identity = (file.sha256, found.st_ino, found.st_mtime_ns)
        if identity not in self._checked:
            if _sha256(path) != file.sha256:
                logger.warning("%s has changed in the cache since it came: it is fetched again", path)
                return False
            self._checked.add(identity)
        return True

    def _download(self, path: Path, file: CachedFile, fetch: Fetch) -> None:
        partial = path.with_name(f"{path.name}.{file.bytes}{PARTIAL}")
        # What is damaged on this disk stays till it is replaced: others may hold it, and it is not counted meanwhile.
        self._make_room(partial, file)
        try:
            found = ""
            for attempt in (1, 2):
                fetch(partial)
                found = _sha256(partial)
                if found == file.sha256:
                    fetched = partial.stat()
                    self._checked.add((found, fetched.st_ino, fetched.st_mtime_ns))
                    sync(partial)
                    partial.replace(path)
                    return
                logger.warning(
                    "%s came with sha256 %s, the index says %s (attempt %d of 2)", file.name, found, file.sha256, attempt
                )
            raise ChecksumError(
                f"{file.name} came twice with sha256 {found}, the index says {file.sha256}: index and file are not of one "
                "corpus, or something on the way changes files; copy both there again"
            )
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, partial: Path, file: CachedFile) -> None:
        """Evict until the file fits, and reserve its room by a partial file with the size in its name."""
        self.check_fits(file)
        with _locked(self.folder / _LOCK, fcntl.LOCK_EX):
            cached = sorted(self._others(partial.parent), key=lambda other: other[1])
            over = sum(size for _, _, size in cached) + file.bytes - self.most_bytes
            for other, _, size in cached:
                if over <= 0:
                    break
                if _evict(other):
                    over -= size
            if over > 0:
                raise CacheFullError(
                    f"no room for {file.name} ({file.bytes} bytes) in {self.folder}: all else of cache_bytes={self.most_bytes} is "
                    "in use, as every reading process holds a shard of each corpus; raise data.cache_bytes or lower num_workers"
                )
            partial.touch()

    def _others(self, own: Path) -> Iterator[tuple[Path, float, int]]:
        """Path, time of last use and size of every file but those of one entry; what a killed process left is deleted."""
        for entry in self.folder.iterdir():
            if entry == own or not _SHA256.fullmatch(entry.name):
                continue
            for path in entry.iterdir():
                if path.name.endswith(PARTIAL):
                    if not _evict(path):
                        yield path, float("inf"), int(path.name.removesuffix(PARTIAL).rsplit(".", 1)[1])
                elif path.name not in (_LOCK, _FETCHING) and (found := _stat(path)) is not None:
                    yield path, found.st_atime, found.st_size


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _evict(path: Path) -> bool:
    """Delete a file unless its entry is held."""
    try:
        with _locked(path.parent / _LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB):
            path.unlink(missing_ok=True)
            return True
    except BlockingIOError:
        return False


@contextmanager
def _locked(path: Path, operation: int) -> Iterator[None]:
    """Hold a lock of the kernel. filelock has no shared one that ends with its process."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, operation)
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # explicitly, as a process forked meanwhile has the same open file
        os.close(file)
