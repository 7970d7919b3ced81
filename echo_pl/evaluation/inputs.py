"""Predictions and references of an evaluation, paired by id, and the run to compare them with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from echo_pl.evaluation.cases import (
    Case,
    UnmatchedIdsError,
    join,
    require_same_ids,
    require_same_references,
    require_sections,
)
from echo_pl.evaluation.options import Options
from echo_pl.evaluation.predictions import (
    Images,
    first_images,
    images_in_files,
    read_predictions,
    read_references,
    references_beside,
)
from echo_pl.io.atomic import write_json

UNMATCHED = "unmatched_ids.json"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Inputs of an evaluation."""

    title: str
    cases: list[Case]
    other: list[Case] | None = None
    """The run to compare with, its cases in the same order."""
    corpus: str | None = None
    """Corpus of decoded studies, whose judge may read them."""
    about: dict[str, Any]
    images: Images | None = None
    """None: the location of the images is unknown."""


def with_other_run(options: Options, inputs: Inputs) -> Inputs:
    """Add the run of ``--against``, paired with the inputs.

    Raises:
        ValueError, OSError: the runs do not match; the lists of unmatched ids are written to ``options.folder``.
    """
    require_sections(inputs.cases, options.sections)
    if options.against is None:
        return inputs
    other = read_predictions(options.against, free_text=options.free_text)
    references = {case.key: case.reference for case in inputs.cases}
    try:
        require_same_ids(references, other, "this run", "the other run")
    except UnmatchedIdsError as error:
        raise _with_lists(options.folder, error, "this_run", "other_run") from error
    if options.references is None:
        require_same_references(references, references_beside(options.against))
    return replace(inputs, other=join(other, references), about={**inputs.about, "against": str(options.against)})


def read_files(options: Options) -> Inputs:
    """Read predictions and references, paired by id."""
    assert options.predictions is not None
    source = options.references or options.predictions
    predictions = read_predictions(options.predictions, free_text=options.free_text)
    try:
        cases = join(predictions, read_references(source))
    except UnmatchedIdsError as error:
        raise _with_lists(options.folder, error, "predictions", "references") from error
    paths = first_images(source)
    return Inputs(
        title=f"Evaluation of {options.predictions.stem}",
        cases=cases,
        about={"predictions": str(options.predictions), "references": str(source)},
        images=images_in_files(paths) if paths else None,
    )


def _with_lists(folder: Path, error: UnmatchedIdsError, first: str, second: str) -> ValueError:
    content = {f"only_in_{first}": error.only_first, f"only_in_{second}": error.only_second}
    path = write_json(folder / UNMATCHED, content)
    return ValueError(f"{error}; both lists are in {path}")
