"""Commands of ``echo-pl`` in this process, and runs as processes that a fork server starts."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from forked import begin_child

from echo_pl.__main__ import app

_SERVER = multiprocessing.get_context("forkserver")
_IMPORTS = ["echo_pl.__main__", "echo_pl.runs.run", "mlflow"]


def command(*words: str) -> Callable[..., int]:
    """Return a function from the arguments of a command to its exit status."""

    def call(arguments: Sequence[object] = ()) -> int:
        try:
            app([*words, *map(str, arguments)], prog_name="echo-pl")
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return call


def run_process(arguments: Sequence[str], log: Path, patience: float = 300.0) -> int:
    """Run a command as the leader of a new session; return its exit status, the negative number of a signal.

    The fork server imports all modules once: an interpreter of its own spends seconds of CPU time on them. A fork of this process
    cannot train, as autograd does not work in a fork of a process that has used it.

    Args:
        arguments: the command's words and arguments.
        log: file for standard output and standard error.
        patience: seconds after which the process is ended.
    """
    _SERVER.set_forkserver_preload(_IMPORTS)
    process = _SERVER.Process(target=_lead_session, args=([*arguments], log, patience))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _lead_session(arguments: list[str], log: Path, patience: float) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    begin_child(patience)
    sys.exit(command(*arguments)())
