"""Answers of a language model on disk: one file each, named by what was asked, so that a rerun asks nothing twice.

Knows files and strings; nothing of HTTP or of what an answer means. Answers hold report text: folders and files are readable by
their owner alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from echo_pl.io.atomic import atomic_file

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1


def answer_key(model: str, prompt_version: str, body: Mapping[str, Any]) -> str:
    """What is asked, as 64 hexadecimal digits: model, version of the prompt and the whole request.

    The address of the endpoint is no part of it: another machine serving the same model finds the same answers.
    """
    content = json.dumps([model, prompt_version, body], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


class AnswerCache:
    """A folder of answers.

    Safe with threads and with several processes, on a network file system too: a file is written under a name of its own and then
    renamed, and of two who write the same key the last one stays. A file that is damaged is noticed by its checksum and counts as
    missing.

    Args:
        folder: made if it is not there.

    Raises:
        NotADirectoryError: it is a file.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"the answer cache {self.folder} is not a folder; give another")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where the answer to this key is."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> str | None:
        """The answer, or None where there is none that can be used; a damaged one is warned of."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            record = json.loads(content)
            text, sound = record["text"], record["schema_version"] == SCHEMA_VERSION and record["key"] == key
            sound = sound and record["sha256"] == _digest(text)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            log.warning("answer %s in the cache %s is damaged; it is asked for again", key[:12], self.folder)
            return None
        return str(text)

    def put(self, key: str, text: str) -> None:
        """Keep an answer: all of it or nothing."""
        path = self.path(key)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        record = {"schema_version": SCHEMA_VERSION, "key": key, "sha256": _digest(text), "text": text}
        with atomic_file(path, private=True) as file:
            file.write(json.dumps(record, ensure_ascii=False).encode())

    def __len__(self) -> int:
        """How many answers there are."""
        return sum(1 for _ in self.folder.glob("??/*.json"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
