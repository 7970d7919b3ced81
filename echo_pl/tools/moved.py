"""Module that ``python -m echo_pl.tools.<name>`` runs, under the name of the old tool."""

from echo_pl.cli.old_spellings import run_tool

if __name__ == "__main__":
    assert __spec__ is not None
    run_tool(__spec__.name.rpartition(".")[2])
