"""General image-text samples that are mixed into the training split, by weight.

They come from a file of JSON lines, ``{"image": "dogs/1.jpg", "text": "...", "prompt": "..."}``: image relative to the file and
inside its folder, prompt optional. In a shard such a sample has ``meta.kind = "general"``, its text as findings, and its prompt
in ``meta.prompt``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from echo_pl.data.loading.order import Indices
from echo_pl.data.loading.request import CONTROL, GENERAL
from echo_pl.data.pipeline.entries import Entry, EntryFiles, LeftOut
from echo_pl.data.readers.reader import NamedImage, RejectedError, SourceStudy, find_image
from echo_pl.reports.report import RawReport

logger = logging.getLogger(__name__)
FILE_NUMBER: Final = -1
"""Number of the file of general samples, in places of studies."""


def choose_general(path: Path, count: int, *, seed: int, files: EntryFiles) -> None:
    """Draw samples without replacement, and write them in the order of their file. If there are too few, all are used.

    An existing result in ``files`` is not changed.
    """
    if files.path(0).is_file():
        return
    with path.open("rb") as file:
        lines = sum(1 for line in file if line.strip())
    if lines < count:
        logger.warning("%s has %d general samples, general_weight needs %d: all of them are used", path, lines, count)
    wanted = {int(i) for i in np.random.default_rng([seed, 1]).permutation(lines)[:count]}
    files.write(0, _entries(path, wanted))


def general_places(files: EntryFiles) -> Indices:
    """(samples, 2): places of the usable general samples."""
    located = files.located(0) if files.path(0).is_file() else ()
    found = [[FILE_NUMBER, offset] for offset, entry in located if isinstance(entry, Entry)]
    return np.asarray(found, dtype=np.int64).reshape(-1, 2)


def _entries(path: Path, wanted: set[int]) -> Iterator[Entry | LeftOut]:
    with path.open("rb") as file:
        for number, line in enumerate(line for line in file if line.strip()):
            if number in wanted:
                key = f"general-{number:07d}"
                try:
                    yield _entry(path.parent, key, line)
                except RejectedError as error:
                    yield LeftOut(place=-1, key=key, kind="reject", step="general", reason=error.reason, detail=error.detail)


def _entry(folder: Path, key: str, line: bytes) -> Entry:
    try:
        record = json.loads(line)
        image, text, prompt = record["image"], record["text"], record.get("prompt", "")
        if not all(isinstance(value, str) for value in (image, text, prompt)) or not text.strip():
            raise TypeError
        for value in (text, prompt):
            value.encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RejectedError("damaged_line", "image and text must be there, as text") from None
    if CONTROL in prompt:
        raise RejectedError("control_token", "the prompt has a tokenizer's control token")
    found = find_image(folder, NamedImage(image))
    meta = {"kind": GENERAL, **({"prompt": prompt} if prompt else {})}
    study = SourceStudy(key=key, patient=key, images=(found,), report=RawReport(findings=text), meta=meta)
    return Entry(place=-1, study=study, sizes=(os.stat(found.path).st_size,))
