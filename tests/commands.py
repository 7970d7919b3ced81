"""Commands of ``echo-pl`` in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from echo_pl.__main__ import app


def command(*words: str) -> Callable[..., int]:
    """Return a function from the arguments of a command to its exit status."""

    def call(arguments: Sequence[object] = ()) -> int:
        try:
            app([*words, *map(str, arguments)], prog_name="echo-pl")
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return call
