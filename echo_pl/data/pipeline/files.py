"""JSON objects and JSON lines of the pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from echo_pl.io.atomic import atomic_file
from echo_pl.io.stop_signals import check_stop

Record = dict[str, Any]


def read_json(path: Path) -> Record:
    """Read one JSON object.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is something else.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no JSON object")
    return record


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, for the owner alone. ASCII, as names of files need not be UTF-8."""
    with atomic_file(path, private=True) as file:
        for record in records:
            check_stop()
            file.write(json_line(record))


def json_line(record: Mapping[str, Any]) -> bytes:
    """One object as a line."""
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def read_lines(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (offset in bytes, object) of each line of a file of ours."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            check_stop()
            yield offset, json.loads(line)
            offset += len(line)
