"""How a tool says the command that called it, so that it can be typed again. Knows no tool."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence

_CREDENTIALS = re.compile(r"://[^\s/@]+@")


def command_line(name: str, arguments: Sequence[str] | None) -> str:
    """``echo-pl <name> <arguments>`` for a shell, without the user and password of a URL: it is written into reports.

    Args:
        name: of the command.
        arguments: what the tool's ``main`` was given: those of ``echo-pl <name> ...``, whose ``sys.argv`` still begins with the
            name. None: it was called as ``python -m``, and they are in ``sys.argv``.

    >>> command_line("evaluate", ["--out", "my reports"])
    "echo-pl evaluate --out 'my reports'"
    >>> command_line("compare", ["--mlflow", "http://bob:secret@server:5000"])
    'echo-pl compare --mlflow http://server:5000'
    """
    said = shlex.join(["echo-pl", name, *(sys.argv[1:] if arguments is None else arguments)])
    return _CREDENTIALS.sub("://", said)
