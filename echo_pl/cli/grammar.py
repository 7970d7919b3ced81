"""The grammar of the command line: `echo-pl <command> [<verb>] [--flags] [key=value ...]`, help with examples, exit status.

An option that is declared as a list takes its values one after the other: `--gpus 8 32 128`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

DONE_WITH_REJECTS = 3
"""Exit status of a command that did its work and left something out; 0 done, 1 failed, 2 wrong usage, 128 + n signal n."""


class Verb(TyperCommand):
    """A command whose list options take several values."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse ``--gpus 8 32`` as ``--gpus 8 --gpus 32``."""
        several = {name for each in self.params if getattr(each, "multiple", False) for name in each.opts}
        configured = any(each.name == "overrides" for each in self.params)
        return super().parse_args(ctx, spread(args, several, configured))


class Tree(TyperGroup):
    """A group of commands that answers a misspelt one with the nearest, or with all."""

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        """Find the command, or raise a usage error."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            near = get_close_matches(args[0], self.commands)
            ctx.fail(
                f"no command {args[0]!r}: did you mean {' or '.join(near)}?"
                if near
                else f"no command {args[0]!r}; the commands are {', '.join(self.commands)}"
            )
        return super().resolve_command(ctx, args)


def spread(arguments: Sequence[str], several: set[str], configured: bool = True) -> list[str]:
    """Repeat the name of an option before each of its values; another option ends them.

    Args:
        arguments: of a command.
        several: options that take several values.
        configured: the command takes ``key=value``, which also ends them.

    >>> spread(["--gpus", "8", "32", "--check", "data=nih"], {"--gpus"})
    ['--gpus', '8', '--gpus', '32', '--check', 'data=nih']
    """
    result: list[str] = []
    current: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            current = argument if argument in several else None
        elif configured and current is not None and "=" in argument and result[-1] != current:
            current = None
        elif current is not None and result[-1] != current:
            result.append(current)
        result.append(argument)
    return result


def check_override(values: list[str] | None) -> list[str] | None:
    """Raise a usage error for an argument that is no ``key=value``."""
    for value in values or ():
        if "=" not in value and not value.startswith("~"):
            raise typer.BadParameter(f"expected key=value, got {value!r}")
    return values


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=value", help="Configuration, as for echo-pl train.", callback=check_override),
]


def tree(help: str) -> typer.Typer:
    """A group of commands: plain help, no traceback boxes, the nearest name for a misspelt one."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
    return typer.Typer(
        cls=Tree, help=help, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True,
        context_settings=settings,
    )  # fmt: skip


def command(app: typer.Typer, name: str, *examples: str, cls: type[TyperCommand] = Verb) -> Callable[..., Any]:
    """Register a function as a command: its docstring is the help, errors that a person can act on become one message.

    Args:
        app: group of the command.
        name: word on the command line.
        examples: whole command lines for the help.
        cls: parser of its arguments.
    """
    epilog = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples)

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            from echo_pl.config.errors import reported

            with reported():
                function(*args, **kwargs)

        app.command(name, cls=cls, epilog=epilog, context_settings={"max_content_width": 110})(run)
        return run

    return register
