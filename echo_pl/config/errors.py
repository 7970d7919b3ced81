"""Errors as one message to a person."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

TRACEBACK = "ECHO_PL_TRACEBACK"
"""Set this environment variable to see where an error came from."""


def explain(error: Exception) -> str:
    """One message for a person: what is wrong, and for a configuration value also where it stands."""
    if isinstance(error, InstantiationException):
        cause = error.__cause__ or error.__context__
        where = [line for line in str(error).splitlines() if line.startswith("full_key:")]
        text = str(cause) if cause is not None else str(error).splitlines()[0]
        return f"{text} ({where[0].replace('full_key:', 'in the configuration at')})" if where else text
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space left on the disk while writing {error.filename or 'a file'}: make room, then resume=auto"
    return str(error)


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors a person can act on into one message and exit status 2."""
    try:
        yield
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get(TRACEBACK):
            raise
        print(f"echo-pl: {explain(error)}\n(set {TRACEBACK}=1 to see where)", file=sys.stderr)
        raise SystemExit(2) from None
