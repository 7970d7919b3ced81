"""Answers of a language model on disk, so that a rerun sends no answered request again.

One file for each answer: safe with threads, processes and network file systems, where a database is
not. Answers hold report text, so files and folders are readable by their owner alone.
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
    """Return the key of a request, 64 hexadecimal digits of model, prompt version and body.

    The address is no part of it: another machine with the same model finds the same answers.
    """
    content = json.dumps([model, prompt_version, body], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


class AnswerCache:
    """A folder of answers, created if it is missing. Of two writers of one key the last one stays.

    Raises:
        NotADirectoryError: the folder is a file.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"the answer cache {self.folder} is not a folder; give another")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Return the file of an answer."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> str | None:
        """Return the answer; None if it is missing or, with a warning, damaged."""
        try:
            content = self.path(key).read_bytes()
        except FileNotFoundError:
            return None
        try:
            record = json.loads(content)
            text = record["text"]
            if record == _record(key, text):
                return str(text)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        log.warning("answer %s in the cache %s is damaged; it is requested again", key[:12], self.folder)
        return None

    def put(self, key: str, text: str) -> None:
        """Store an answer, all of it or nothing."""
        path = self.path(key)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with atomic_file(path, private=True) as file:
            file.write(json.dumps(_record(key, text), ensure_ascii=False).encode())

    def __len__(self) -> int:
        """Count the answers."""
        return sum(1 for _ in self.folder.glob("??/*.json"))


def _record(key: str, text: str) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, "key": key, "sha256": hashlib.sha256(text.encode()).hexdigest(), "text": text}
