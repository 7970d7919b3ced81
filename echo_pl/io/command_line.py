"""The command line of this process, for reports and messages that show how to repeat a command."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence

_CREDENTIALS = re.compile(r"://[^\s/@]+@")


def command_line(arguments: Sequence[str] | None = None) -> str:
    """Return ``echo-pl <arguments>`` for a shell, without the user and password of a URL.

    Args:
        arguments: default those of this process.

    >>> command_line(["evaluate", "--out", "my reports"])
    "echo-pl evaluate --out 'my reports'"
    >>> command_line(["compare", "--mlflow", "http://bob:secret@server:5000"])
    'echo-pl compare --mlflow http://server:5000'
    """
    whole = shlex.join(["echo-pl", *(sys.argv[1:] if arguments is None else arguments)])
    return _CREDENTIALS.sub("://", whole)
