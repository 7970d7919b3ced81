"""Files that are whole or not there, and JSON lines.

Knows paths and bytes. Everything that the pipeline writes goes through here: under a temporary name of the writing process, to
the disk, then renamed. What a killed process leaves behind has the suffix :data:`PARTIAL`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

PARTIAL: Final = ".partial"
Record = dict[str, Any]


@contextmanager
def whole_file(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Open a file to write; it is at ``path`` when the block ends without an error, and not before.

    Args:
        path: of the file; its folder is made.
        private: whether its owner alone may read it, from the first byte on.

    Raises:
        OSError: it cannot be written (the disk is full); what was at ``path`` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        mode = 0o600 if private else 0o666
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write one JSON object, keys in their order."""
    with whole_file(path) as file:
        file.write((json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


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
    with whole_file(path, private=True) as file:
        for record in records:
            file.write(json_line(record))


def json_line(record: Mapping[str, Any]) -> bytes:
    """One object as a line."""
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


def read_lines(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (offset in bytes, object) of each line of a file of ours."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            yield offset, json.loads(line)
            offset += len(line)


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left half written in a folder and in those in it."""
    for path in (*folder.glob(f"*{PARTIAL}"), *folder.glob(f"*/*{PARTIAL}")):
        if path.is_file():
            path.unlink(missing_ok=True)
