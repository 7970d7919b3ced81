"""`echo-pl` and `python -m echo_pl`: the command tree."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from echo_pl import __version__
from echo_pl.cli import bench, checkpoint, compare, corpus, demo, evaluate, mlflow, old_spellings, plan, train, trajectories
from echo_pl.cli.grammar import tree

app = tree("Train, distil, decode and evaluate block-diffusion models that write chest X-ray reports.")
for each in (train, compare, demo, evaluate, corpus, trajectories, checkpoint, bench, plan, mlflow):
    each.add_commands(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"echo-pl {__version__}")
        raise typer.Exit


@app.callback(
    epilog="\b\nExamples:\n  echo-pl demo\n  echo-pl train stage=rad block_size=8\n\n"
    "Exit status: 0 done, 1 failed, 2 wrong usage, 3 done with rejects, 128 + n ended by signal n."
)
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None: ...


def main() -> None:
    """Entry point of the console script."""
    arguments = old_spellings.translate(sys.argv[1:])
    if arguments and _is_configuration(arguments[0]):
        arguments = ["train", *arguments]
    app(arguments, prog_name="echo-pl")


def _is_configuration(first: str) -> bool:
    """Return True for the short form of `train`: a ``key=value`` or an option of Hydra comes first."""
    if first.startswith("-"):
        return first not in ("-h", "--help", "--version")
    return "=" in first or first.startswith(("+", "~"))


if __name__ == "__main__":
    main()
