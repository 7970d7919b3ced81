"""What the evaluate command scores: predictions and references from files, or decoded studies, and the run to compare them with.

Pairs by id and refuses what does not fit; knows no score.
"""

from __future__ import annotations

import argparse
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
from echo_pl.evaluation.predictions import (
    Images,
    first_images,
    images_in_files,
    read_predictions,
    read_references,
    references_beside,
)
from echo_pl.evaluation.score_files import write_records
from echo_pl.io.atomic import write_json

UNMATCHED = "unmatched_ids.json"
BATCH_SIZE = 16
"""Studies that a checkpoint decodes at once unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is scored."""

    title: str
    cases: list[Case]
    other: list[Case] | None = None
    """The run to compare with, its cases in the same order."""
    corpus: str | None = None
    """Of decoded studies: whose judge may read them."""
    about: dict[str, Any]
    images: Images | None = None
    """None: nobody has said where images are."""


def read_inputs(args: argparse.Namespace) -> Inputs:
    """Everything that the options name, paired.

    Raises:
        ValueError, OSError: with what does not fit; a decode is in ``args.out`` by then, and so are long lists of ids.
    """
    inputs = _from_files(args) if args.checkpoint is None else _decoded(args)
    require_sections(inputs.cases, args.sections)
    if args.against is None:
        return inputs
    other = read_predictions(args.against, free_text=args.free_text)
    references = {case.key: case.reference for case in inputs.cases}
    try:
        require_same_ids(references, other, "this run", "the other run")
    except UnmatchedIdsError as error:
        raise _with_lists(args.out, error, "this_run", "other_run") from error
    if args.references is None:
        require_same_references(references, references_beside(args.against))
    return replace(inputs, other=join(other, references), about={**inputs.about, "against": str(args.against)})


def _from_files(args: argparse.Namespace) -> Inputs:
    source = args.references or args.predictions
    predictions, references = read_predictions(args.predictions, free_text=args.free_text), read_references(source)
    try:
        cases = join(predictions, references)
    except UnmatchedIdsError as error:
        raise _with_lists(args.out, error, "predictions", "references") from error
    paths = first_images(source)
    return Inputs(
        title=f"Evaluation of {args.predictions.stem}",
        cases=cases,
        about={"predictions": str(args.predictions), "references": str(source)},
        images=images_in_files(paths) if paths else None,
    )


def _decoded(args: argparse.Namespace) -> Inputs:
    from echo_pl.distill.decode_checkpoint import decode_checkpoint  # training's libraries take seconds to import

    args.out.mkdir(parents=True, exist_ok=True)  # now, and not after the decode, which would be lost
    size = BATCH_SIZE if args.batch_size is None else args.batch_size
    decoded = decode_checkpoint(args.checkpoint, args.overrides, args.split or "test", args.studies, size)
    path = write_records(args.out, decoded.cases)  # decoding is what takes long: nothing that comes later may lose it
    print(f"{len(decoded.cases)} decoded reports are in {path}", flush=True)
    return Inputs(
        title=f"Evaluation of {decoded.name}",
        cases=decoded.cases,
        corpus=decoded.judge,
        about={"decoding": decoded.about},
        images=decoded.images,
    )


def _with_lists(folder: Path, error: UnmatchedIdsError, first: str, second: str) -> ValueError:
    content = {f"only_in_{first}": error.only_first, f"only_in_{second}": error.only_second}
    path = write_json(folder / UNMATCHED, content)
    return ValueError(f"{error}; both lists are in {path}")
