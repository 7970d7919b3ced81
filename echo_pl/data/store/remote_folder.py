"""Files of a remote folder, downloaded through fsspec, with retries after transient errors.

Only the protocols in :data:`PROTOCOLS` are allowed; commands and chained URLs are invalid.
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
_TRANSIENT_STATUS = (408, 425, 429)
_LOCAL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)
"""Errors of the local disk and process, which a retry does not solve."""


class RemoteFileError(OSError):
    """A file could not be downloaded."""


class TooLongError(ValueError):
    """A file is longer than its limit."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Attempts and waits of a download."""

    attempts: int = 5
    """Most attempts for one file."""
    first_wait: float = 1.0
    """Seconds before the second attempt; doubled before each further one."""
    timeout: float = 60.0
    """Seconds without a connection or a byte after which an attempt fails."""

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_wait < 0 or self.timeout <= 0:
            raise ValueError(f"a retry policy needs attempts >= 1, first_wait >= 0 and timeout > 0, got {self}")


def is_url(place: Path | str) -> bool:
    """Return True for a URL of any protocol, False for a local path."""
    return not isinstance(place, Path) and "://" in place


@dataclass(frozen=True, kw_only=True)
class RemoteFolder:
    """A remote folder.

    Credentials come from fsspec or the protocol (``FSSPEC_HTTPS``, ``AWS_PROFILE``), never from the URL.
    """

    url: str
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        _check_url(self.url)
        try:
            fsspec.get_filesystem_class(self.protocol)
        except ImportError as error:
            extra = " (pip install 'echo-pl[s3]')" if self.protocol == "s3" else ""
            raise ValueError(f"{self.url} cannot be read: {error}{extra}") from error

    @property
    def protocol(self) -> str:
        """Protocol of the URL."""
        return self.url.split("://", 1)[0]

    def place(self, name: str) -> str:
        """URL of a file.

        Raises:
            ValueError: If the name is not a plain one; the index may come from an untrusted source.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{self.url}: {name!r} is not a plain file name; it is not requested")
        return f"{self.url.rstrip('/')}/{name}"

    def fetch(self, name: str, target: Path, most: int) -> None:
        """Download a file to ``target``, which is overwritten.

        Raises:
            FileNotFoundError: If there is no such file.
            RemoteFileError: If all attempts failed.
            TooLongError: If it has more than ``most`` bytes (not checked for local protocols). A few megabytes more may be written.
        """
        place = self.place(name)
        self._with_retries(place, lambda: self._files().get_file(place, str(target), callback=_ByteLimit(place, most)))

    def read(self, name: str, most: int) -> bytes:
        """Return the content of a small file.

        Raises:
            FileNotFoundError: If there is no such file.
            RemoteFileError: If all attempts failed.
            TooLongError: If it has more than ``most`` bytes.
        """
        with tempfile.TemporaryDirectory(prefix="echo_pl-") as folder:
            target = Path(folder) / "file"
            self.fetch(name, target, most)
            return target.read_bytes()

    def _files(self) -> Any:
        """File system of the protocol. fsspec keeps one per process, so a forked reader has its own."""
        seconds = self.retry.timeout
        if self.protocol in ("http", "https"):
            timeout = aiohttp.ClientTimeout(total=None, connect=seconds, sock_connect=seconds, sock_read=seconds)
            return fsspec.filesystem(self.protocol, timeout=timeout, get_client=_client)
        if self.protocol == "s3":
            return fsspec.filesystem("s3", config_kwargs={"connect_timeout": seconds, "read_timeout": seconds})
        return fsspec.filesystem(self.protocol)

    def _with_retries(self, place: str, download: Callable[[], None]) -> None:
        errors = _errors(self.protocol)
        wait = self.retry.first_wait
        for attempt in range(1, self.retry.attempts + 1):
            try:
                download()
                return
            except errors as error:
                reason = _describe(error)
                if isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(f"there is no {place}") from error
                if not _is_transient(error):
                    raise RemoteFileError(f"{place} cannot be fetched: {reason}") from error
                if attempt == self.retry.attempts:
                    raise RemoteFileError(
                        f"{place} could not be fetched in {attempt} attempts, the last one: {reason}; check the server, "
                        "and run again: what was fetched is kept"
                    ) from error
                logger.warning("%s: attempt %d of %d failed (%s); again in %g s", place, attempt, self.retry.attempts, reason, wait)
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


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, aiohttp.ClientResponseError):
        return _is_invalid_http(error) or error.status >= 500 or error.status in _TRANSIENT_STATUS
    if isinstance(error, aiohttp.InvalidURL | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    return not (isinstance(error, OSError) and error.errno in _LOCAL_ERRNOS)


def _is_invalid_http(error: aiohttp.ClientResponseError) -> bool:
    """Return True if aiohttp chose the status, for an answer with a wrong length or an invalid header."""
    return isinstance(error.__cause__, HttpProcessingError)


def _describe(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientResponseError) and _is_invalid_http(error):
        return f"the answer breaks the rules of HTTP: {' '.join(error.message.split())[:100]}"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"status {error.status}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _errors(protocol: str) -> tuple[type[Exception], ...]:
    """Errors that a file system of fsspec may raise; s3fs raises those of its library too."""
    if protocol != "s3":
        return (OSError, aiohttp.ClientError)
    from botocore.exceptions import BotoCoreError, ClientError

    return (OSError, aiohttp.ClientError, BotoCoreError, ClientError)


async def _client(**options: Any) -> aiohttp.ClientSession:
    """Session that keeps no connection open.

    A forked process that closes its copy of an open connection removes it from the parent's event loop as well. The parent's next
    request over it would then never get an answer.
    """
    return aiohttp.ClientSession(**{"connector": aiohttp.TCPConnector(force_close=True), **options})


class _ByteLimit(Callback):
    """Callback that ends a download longer than its limit."""

    def __init__(self, place: str, most: int) -> None:
        super().__init__()
        self._place = place
        self._most = most
        self._received = 0

    def relative_update(self, inc: int = 1) -> None:
        """Count bytes."""
        self._received += inc
        if self._received > self._most:
            raise TooLongError(f"{self._place} has more than {self._most} bytes")
