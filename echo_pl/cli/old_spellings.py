"""Spellings of 0.1 that still work until 0.3, each with one line that names the new one."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

COMMANDS = {
    "prepare": "corpus prepare",
    "view": "corpus view",
    "collect": "trajectories collect",
    "gap": "trajectories gap",
    "upload": "mlflow upload",
}
"""First word of a command line -> its new words."""
TOOLS = {
    "bench": "bench decode",
    "bench_data": "bench data",
    "bench_rad": "bench train",
    "check_normalizer": "corpus check",
    "checkpoint": "checkpoint",
    "collect_trajectories": "trajectories collect",
    "compare_copies": "bench copies",
    "demo": "demo",
    "make_corpus": "corpus make",
    "scale": "plan",
    "store_features": "corpus features",
}
"""Module of ``python -m echo_pl.tools.<name>`` -> words of the command."""
_VERBS = {"to-hf": "export", "from-hf": "import"}
_LISTS = ("--set", "--data")
"""Options whose values were configuration, which now needs no option."""


def translate(arguments: Sequence[str]) -> list[str]:
    """Rewrite a command line that begins with an old command."""
    if not arguments or arguments[0] not in COMMANDS:
        return list(arguments)
    return rewrite(f"echo-pl {arguments[0]}", COMMANDS[arguments[0]], arguments[1:])


def rewrite(old: str, new: str, arguments: Sequence[str]) -> list[str]:
    """Arguments of the new command; the note goes to stderr.

    >>> rewrite("echo-pl gap", "trajectories gap", ["--set", "data=nih"])
    ['trajectories', 'gap', 'data=nih']
    """
    print(f"note: {old} is now echo-pl {new}; the old spelling works until 0.3", file=sys.stderr)
    # `--data nih` of the demo is an option still; `--data data=nih` of the calculator was a list of key=value.
    kept = [
        argument
        for argument, after in zip(arguments, [*arguments[1:], ""], strict=True)
        if not (argument in _LISTS and "=" in after)
    ]
    return [*new.split(), *(_VERBS.get(argument, argument) for argument in kept)]


def run_tool(name: str) -> None:
    """Run ``python -m echo_pl.tools.<name>``."""
    _run(rewrite(f"python -m echo_pl.tools.{name}", TOOLS[name], sys.argv[1:]))


def bench() -> None:
    """Entry point of the console script ``echo-pl-bench``."""
    _run(rewrite("echo-pl-bench", "bench decode", sys.argv[1:]))


def _run(arguments: list[str]) -> None:
    sys.argv = ["echo-pl", *arguments]
    runpy.run_module("echo_pl", run_name="__main__")
