"""Files of a folder behind a URL, through fsspec: fetched whole, again and again where the fault may pass.

Only the protocols named here are spoken; commands and chained URLs are refused. Knows names, bytes and patience; nothing of
checksums, caches or corpora.
"""

from __future__ import annotations

import errno
import logging
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import fsspec
from aiohttp.http import HttpProcessingError
from fsspec.callbacks import Callback

logger = logging.getLogger(__name__)

PROTOCOLS = ("http", "https", "s3", "file", "memory")
_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_PASSING_STATUS = (408, 425, 429)
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)
"""Faults of the local disk and process, which trying again does not heal."""


class RemoteFileError(OSError):
    """A file could not be fetched."""


class TooLongError(ValueError):
    """A file is longer than it may be."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a server is waited for."""

    attempts: int = 5
    """Times a file is asked for."""
    first_wait: float = 1.0
    """Seconds before the second attempt; twice as long before each further one."""
    silence: float = 60.0
    """Seconds without a connection or a byte after which an attempt has failed."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_wait < 0 or self.silence <= 0:
            raise ValueError(f"patience needs attempts >= 1, first_wait >= 0 and silence > 0, got {self}")


def is_url(place: Path | str) -> bool:
    """Whether this is a URL, of whatever protocol, and no local path."""
    return not isinstance(place, Path) and "://" in place


@dataclass(frozen=True, kw_only=True)
class RemoteFolder:
    """A folder behind a URL.

    Credentials are those of fsspec and of the protocol (``FSSPEC_HTTPS``, ``AWS_PROFILE``), never part of the URL.
    """

    url: str
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        _check_url(self.url)
        try:
            fsspec.get_filesystem_class(self.protocol)
        except ImportError as error:
            extra = " (pip install 'echo-pl[s3]')" if self.protocol == "s3" else ""
            raise ValueError(f"{self.url} cannot be read: {error}{extra}") from error

    @property
    def protocol(self) -> str:
        """The part of the URL before ``://``."""
        return self.url.split("://", 1)[0]

    def place(self, name: str) -> str:
        """URL of a file.

        Raises:
            ValueError: If the name is not plain, as an index from outside may have it.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{self.url}: {name!r} is no plain file name, it is not asked for")
        return f"{self.url.rstrip('/')}/{name}"

    def fetch(self, name: str, target: Path, most: int) -> None:
        """Write a file to ``target``, over what is there.

        Raises:
            FileNotFoundError: If there is no such file.
            RemoteFileError: If it could not be fetched with all patience.
            TooLongError: If it comes from elsewhere and has more than ``most`` bytes; few megabytes more are written.
        """
        place = self.place(name)
        self._patiently(place, lambda: self._files().get_file(place, str(target), callback=_AtMost(place, most)))

    def read(self, name: str, most: int) -> bytes:
        """Return a file that is small.

        Raises:
            FileNotFoundError: If there is no such file.
            RemoteFileError: If it could not be fetched with all patience.
            TooLongError: If it has more than ``most`` bytes.
        """
        with tempfile.TemporaryDirectory(prefix="echo_pl-") as folder:
            target = Path(folder) / "file"
            self.fetch(name, target, most)
            return target.read_bytes()

    def _files(self) -> Any:
        """The file system; fsspec keeps one per process, so a forked reader has its own."""
        if self.protocol in ("http", "https"):
            silence = self.patience.silence
            timeout = aiohttp.ClientTimeout(total=None, connect=silence, sock_connect=silence, sock_read=silence)
            return fsspec.filesystem(self.protocol, timeout=timeout, get_client=_client)
        if self.protocol == "s3":
            silence = self.patience.silence
            return fsspec.filesystem("s3", config_kwargs={"connect_timeout": silence, "read_timeout": silence})
        return fsspec.filesystem(self.protocol)

    def _patiently(self, place: str, ask: Callable[[], None]) -> None:
        faults = _faults(self.protocol)
        wait = self.patience.first_wait
        for attempt in range(1, self.patience.attempts + 1):
            try:
                ask()
                return
            except faults as error:
                said = _said(error)
                if isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(f"there is no {place}") from error
                if not _may_pass(error):
                    raise RemoteFileError(f"{place} cannot be fetched: {said}") from error
                if attempt == self.patience.attempts:
                    raise RemoteFileError(
                        f"{place} could not be fetched in {attempt} attempts, the last one: {said}; see whether the server is up, "
                        "and run again: what was fetched is kept"
                    ) from error
                logger.warning(
                    "%s: attempt %d of %d failed (%s); again in %g s", place, attempt, self.patience.attempts, said, wait
                )
            time.sleep(wait)
            wait *= 2


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in PROTOCOLS or f"{parts.scheme}://" != url[: len(parts.scheme) + 3] or "::" in url:
        raise ValueError(
            f"a corpus is read from a local folder or from a URL of {', '.join(f'{name}://' for name in PROTOCOLS)}, never from "
            f"a URL or a command of another kind: {url!r}"
        )
    if "@" in parts.netloc:
        raise ValueError(
            f"the URL of a corpus on {parts.hostname} holds credentials, which would be written into every record of the run; give "
            "them to fsspec (FSSPEC_HTTPS) or to the protocol (AWS_PROFILE)"
        )
    if parts.query or parts.fragment or any(c.isspace() or not c.isprintable() for c in url):
        raise ValueError(f"the URL of a corpus is that of a folder, without query, fragment or spaces, got {url!r}")


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, aiohttp.ClientResponseError):
        return _is_no_http(error) or error.status >= 500 or error.status in _PASSING_STATUS
    if isinstance(error, aiohttp.InvalidURL | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    return not (isinstance(error, OSError) and error.errno in _OURS)


def _is_no_http(error: aiohttp.ClientResponseError) -> bool:
    """Whether the status is aiohttp's own, for an answer against the rules: other lengths than it says, nonsense in its head."""
    return isinstance(error.__cause__, HttpProcessingError)


def _said(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientResponseError) and _is_no_http(error):
        return f"the answer breaks the rules of HTTP: {' '.join(error.message.split())[:100]}"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"status {error.status}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _faults(protocol: str) -> tuple[type[Exception], ...]:
    """What a file system of fsspec may raise; s3fs lets errors of its library through."""
    if protocol != "s3":
        return (OSError, aiohttp.ClientError)
    from botocore.exceptions import BotoCoreError, ClientError

    return (OSError, aiohttp.ClientError, BotoCoreError, ClientError)


async def _client(**options: Any) -> aiohttp.ClientSession:
    """A session that keeps no connection open.

    A process forked beside an open one that throws its copy away takes it from what the parent's loop watches as well, and the
    parent's next request over it gets no answer.
    """
    return aiohttp.ClientSession(**{"connector": aiohttp.TCPConnector(force_close=True), **options})


class _AtMost(Callback):
    """Ends a transfer that brings more than was announced."""

    def __init__(self, place: str, most: int) -> None:
        super().__init__()
        self._place = place
        self._most = most
        self._had = 0

    def relative_update(self, inc: int = 1) -> None:
        """Count bytes."""
        self._had += inc
        if self._had > self._most:
            raise TooLongError(f"{self._place} has more than {self._most} bytes")
