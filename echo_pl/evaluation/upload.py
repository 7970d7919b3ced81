"""Upload an evaluation from its folder to MLflow: scores and the aggregate, and the reports on request.

The folder is enough, so that a failed upload can be repeated later.
"""

from __future__ import annotations

import re
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from echo_pl.evaluation.predictions import RECORDS
from echo_pl.evaluation.score_files import AGGREGATE, PAGES, read_aggregate
from echo_pl.io.command_line import command_line
from echo_pl.tracking.upload import bound_retries, first_line, select_experiment

WITH_TEXTS = (RECORDS, *PAGES)


def upload(folder: Path, uri: str, experiment: str, *, with_texts: bool = False) -> str:
    """Log an evaluation as one run; returns the run's id.

    Args:
        folder: folder of an evaluation.
        uri: tracking server, or ``sqlite:///<file>``.
        experiment: experiment of the run.
        with_texts: upload the reports too, which are patient data.

    Raises:
        FileNotFoundError: there is no finished evaluation in ``folder``.
        OSError: MLflow could not be reached; the message says how to upload later.
    """
    aggregate = read_aggregate(folder)
    bound_retries()
    try:
        select_experiment(uri, experiment)
        with mlflow.start_run(run_name=folder.resolve().name) as run:
            settings = ("reports", "language", "sections", "seed", "resamples", "level", "predictions", "against")
            mlflow.log_params({name: aggregate[name] for name in settings if name in aggregate})
            mlflow.log_metrics(_metrics(aggregate["figures"]))
            for name in (AGGREGATE, *(WITH_TEXTS if with_texts else ())):
                mlflow.log_artifact(str(folder / name))
            return str(run.info.run_id)
    except (MlflowException, OSError) as error:
        again = ["evaluate", "--upload", str(folder), "--mlflow", uri, "--experiment", experiment]
        again += ["--mlflow-texts"] if with_texts else []
        raise OSError(
            f"the evaluation is whole in {folder}, but MLflow at {uri} did not take it ({first_line(error)}); "
            f"upload it later: {command_line(again)}"
        ) from error


def _metrics(figures: dict[str, dict[str, float | None]]) -> dict[str, float]:
    """Value and interval of every score that is a number, with names that MLflow accepts."""
    found = {}
    for name, figure in figures.items():
        plain = re.sub(r"[^\w.\- /]", "_", name)
        for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            number = figure[part]
            if number is not None:
                found[f"eval/{plain}{suffix}"] = number
    return found
