"""Upload runs from a local MLflow database to a server, with every step of every metric, parameters, tags and artifacts.

    echo-pl upload --from sqlite:///outputs/mlflow.db --to http://server:5000 --run 0a1b...
    echo-pl upload --from sqlite:///outputs/mlflow.db --to http://server:5000 --all --experiment echo_pl

What is there already is left, so it can be started again. Runs under which others are shown go with them. Logged models and dataset
inputs of other programs are not copied; echo-pl logs none.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from echo_pl.config.errors import reported
from echo_pl.runs.run import silence_noisy_loggers
from echo_pl.tracking.upload import Uploaded, bound_retries, first_line, upload_run


def upload(source: str, target: str, runs: list[str] | None, experiment: str | None) -> dict[str, Uploaded]:
    """Copy runs; None: all of the experiment, or of all experiments.

    Raises:
        FileNotFoundError: there is no such database.
        OSError: a store cannot be reached; what was copied by then is there.
        ValueError: nothing to upload.
    """
    if source.startswith("sqlite:///") and not Path(source.removeprefix("sqlite:///")).is_file():
        raise FileNotFoundError(f"there is no database {source}")  # MLflow would make an empty one
    bound_retries()
    silence_noisy_loggers()
    done: dict[str, Uploaded] = {}
    here, there = MlflowClient(source), MlflowClient(target)
    try:
        for run in runs or _all(here, experiment):
            done[run] = upload_run(here, run, there)
    except MlflowException as error:
        raise OSError(
            f"{len(done)} runs were uploaded to {target}, then: {first_line(error)}; start it again for the rest"
        ) from error
    if not done:
        raise ValueError(f"there are no runs in {source}" + ("" if experiment is None else f", experiment {experiment}"))
    return done


def _all(client: MlflowClient, experiment: str | None) -> list[str]:
    """Every run, the oldest first."""
    places = [one.experiment_id for one in client.search_experiments() if experiment in (None, one.name)]
    found: list[str] = []
    token: str | None = ""
    while places and token is not None:
        page = client.search_runs(places, order_by=["attributes.start_time ASC"], max_results=1000, page_token=token or None)
        found += [run.info.run_id for run in page]
        token = page.token or None
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="echo-pl upload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="source", required=True, metavar="URI", help="sqlite:///<file>: where the runs are")
    parser.add_argument("--to", dest="target", required=True, metavar="URI", help="tracking URI of the server")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", dest="runs", nargs="+", metavar="ID", help="ids of local runs")
    which.add_argument("--all", action="store_true", help="every run")
    parser.add_argument("--experiment", help="with --all: those of this experiment")
    args = parser.parse_args(arguments)
    with reported():
        for run, one in upload(args.source, args.target, args.runs, args.experiment).items():
            print(f"{run} -> {one.run_id}: new {one.metrics} metric values, {one.params} parameters, {one.artifacts} artifacts")


if __name__ == "__main__":
    main()
