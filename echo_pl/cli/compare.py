"""`echo-pl compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from echo_pl.cli.grammar import command


def add_commands(app: typer.Typer) -> None:
    """Register the command."""

    @command(
        app,
        "compare",
        "echo-pl compare --sweep lab",
        "echo-pl compare --mlflow http://server:5000 --parent 0a1b2c --quality finding_f1 rouge_l --out outputs/compare/lab",
    )
    def compare(
        mlflow: Annotated[
            str, Option(metavar="URI", help="Tracking server or database of the runs.")
        ] = "sqlite:///outputs/mlflow.db",
        experiment: Annotated[str, Option(help="Experiment in MLflow.")] = "echo_pl",
        sweep: Annotated[str | None, Option(help="Name of the sweep; not needed if there is only one.")] = None,
        parent: Annotated[str | None, Option(metavar="ID", help="Parent run of the sweep, instead of its name.")] = None,
        quality: Annotated[
            list[str] | None,
            Option(metavar="SCORE ...", help="Scores to draw fronts for.", show_default="finding_f1 rouge_l"),
        ] = None,
        against: Annotated[
            list[str] | None,
            Option(metavar="OBJECTIVE ...", help="Objectives to test all others against.", show_default="dcd ce"),
        ] = None,
        rounds: Annotated[int, Option(help="Random exchanges of each test.")] = 10_000,
        level: Annotated[float, Option(help="Confidence level of the intervals over seeds.")] = 0.95,
        out: Annotated[Path | None, Option(help="Folder to write (default outputs/compare/<sweep>).")] = None,
    ) -> None:
        """Compare the cells of a sweep, read from MLflow.

        Prints and writes the means over seeds, the losses against the AR model, tests of the objectives against each other, the
        Pareto front of quality against speed, and what is missing: compare.md, pareto.svg, index.html, compare.json.
        """
        from echo_pl.sweeps.compare import BASELINES, QUALITIES, compare_sweep

        compare_sweep(
            uri=mlflow, experiment=experiment, sweep=sweep, parent_id=parent, qualities=quality or list(QUALITIES),
            against=against or list(BASELINES), rounds=rounds, level=level, out=out,
        )  # fmt: skip
