"""`echo-pl mlflow`: copy runs to a server, and look at runs in the browser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from echo_pl.cli.grammar import command, tree


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    verbs = tree("Copy runs to an MLflow server, look at runs in the browser.")
    app.add_typer(verbs, name="mlflow")

    @command(
        verbs,
        "upload",
        "echo-pl mlflow upload --from sqlite:///outputs/mlflow.db --to http://server:5000 --run 0a1b2c 3d4e5f",
        "echo-pl mlflow upload --from sqlite:///outputs/mlflow.db --to http://server:5000 --all --experiment echo_pl",
    )
    def upload(
        source: Annotated[str, Option("--from", metavar="URI", help="sqlite:///FILE of the local runs.")],
        target: Annotated[str, Option("--to", metavar="URI", help="Tracking URI of the server.")],
        run: Annotated[list[str] | None, Option(metavar="ID ...", help="Runs to copy.")] = None,
        every: Annotated[bool, Option("--all", help="Copy every run.")] = False,
        experiment: Annotated[str | None, Option(help="With --all: only the runs of this experiment.")] = None,
    ) -> None:
        """Copy runs from a local database to a server.

        Every step of every metric, parameters, tags and artifacts. What the server has already is
        left, so the same command continues. Parents of nested runs are copied too. Logged models
        and dataset inputs of other programs are not copied; echo-pl logs none.
        """
        if bool(run) == every:
            raise typer.BadParameter("give --run ID ... or --all, one of them")
        from echo_pl.runs.run import silence_noisy_loggers
        from echo_pl.tracking.upload import upload_runs

        silence_noisy_loggers()
        for local, copied in upload_runs(source, target, run, experiment).items():
            counts = f"{copied.metrics} metric values, {copied.params} parameters, {copied.artifacts} artifacts"
            print(f"{local} -> {copied.run_id}: new {counts}")

    @command(
        verbs,
        "ui",
        "echo-pl mlflow ui",
        "echo-pl mlflow ui --database outputs/demo/mlflow.db --port 5001",
    )
    def ui(
        database: Annotated[Path, Option(help="Local database of the runs.")] = Path("outputs/mlflow.db"),
        host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
        port: Annotated[int, Option(help="Port to listen on.")] = 5000,
    ) -> None:
        """Serve the runs of a local database as a web page, until Ctrl-C."""
        if not database.is_file():
            raise FileNotFoundError(f"no database {database}: train something first, or give --database FILE")
        uri = f"sqlite:///{database.absolute()}"
        print(f"runs of {database}: http://{host}:{port}", flush=True)
        arguments = ["server", "--backend-store-uri", uri, "--host", host, "--port", str(port)]
        raise SystemExit(subprocess.call([sys.executable, "-m", "mlflow", *arguments]))
