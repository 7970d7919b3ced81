"""Plan of a corpus, and its work folder.

A plan contains everything that determines the bytes of a corpus and is known before the first study is read. A command with
the same plan continues the work; a command with another plan is an error that names the differences.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from echo_pl.data.pipeline.components import Components
from echo_pl.data.pipeline.entries import read_json
from echo_pl.data.pipeline.settings import Settings
from echo_pl.data.readers.reader import safe_key
from echo_pl.data.store.corpus_index import INDEX_NAME, CorpusIndex, check_local
from echo_pl.io.atomic import remove_partials, write_json
from echo_pl.io.locks import LockedError, exclusive_lock

PIPELINE_VERSION: Final = 2
"""Raised when the same settings make other bytes."""
WORK: Final = ".work"
ANSWERS: Final = ".answers"
"""Folder for the answers of a language model, which are no part of the corpus."""
CARD: Final = "card.json"
_PLAN: Final = "plan.json"
_TABLES: Final = (".csv", ".tsv", ".json", ".jsonl", ".xml", ".txt")

Plan = Mapping[str, str | int | float | bool | None]


def make_plan(settings: Settings, components: Components) -> Plan:
    """Return everything that determines the corpus, by name.

    Raises:
        FileNotFoundError: If the source is missing.
        ValueError: If settings and components do not match, or the corpus has an invalid name.
    """
    needs = {
        "redact": (settings.redact, components.redact),
        "near_duplicates": (settings.near_duplicates is not None, components.duplicates),
        "chinese_share": (settings.chinese_share > 0, components.translator),
        "general_weight": (settings.general_weight > 0, components.general),
    }
    for name, (is_set, component) in needs.items():
        if is_set != (component is not None):
            raise ValueError(f"{name} needs its component, and the component needs it: set: {is_set}, given: {not is_set}")
    if safe_key(components.reader.name) != components.reader.name:
        raise ValueError(f"a corpus's name must be made of letters, digits, '-' and '_', got {components.reader.name!r}")
    return {
        "pipeline": PIPELINE_VERSION,
        "echo_pl": version("echo-pl"),
        "pillow": version("Pillow"),
        "reader": components.reader.name,
        "reader_options": json.dumps(dict(sorted(components.reader_options.items()))),
        "source": source_stamp(components.source),
        "normalizer": components.engine.name,
        "check": components.check.name,
        "translator": None if components.translator is None else components.translator.name,
        "duplicate_search": None if components.duplicates is None else components.duplicates.name,
        "general": None if components.general is None else source_stamp(components.general),
        "tokenizer": components.tokenizer_name,
        **settings.as_options(),
    }


def source_stamp(source: Path) -> str:
    """Return a hash of a file, or of the tables in a folder and in its direct subfolders.

    Tables are recognized by their names, also gzipped. Archives are not included. Reports in files of their own in deeper
    folders (MIMIC-CXR) and images are checked when the source is listed.

    Raises:
        FileNotFoundError: If there is no such file or folder.
    """
    if source.is_dir():
        folders = [source, *(Path(entry.path) for entry in os.scandir(source) if entry.is_dir())]
        paths = sorted(path for folder in folders for path in _tables(folder))
    elif source.is_file():
        paths = [source]
    else:
        raise FileNotFoundError(errno.ENOENT, "no dataset there; name its folder or file", str(source))
    stamp = hashlib.sha256()
    for path in paths:
        name = path.relative_to(source) if path != source else path.name
        with path.open("rb") as file:
            stamp.update(os.fsencode(name) + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return stamp.hexdigest()[:16]


def _tables(folder: Path) -> list[Path]:
    with os.scandir(folder) as found:
        return [Path(entry.path) for entry in found if entry.name.lower().removesuffix(".gz").endswith(_TABLES) and entry.is_file()]


@dataclass(frozen=True, kw_only=True)
class WorkDir:
    """Corpus folder, and the work folder in it."""

    out: Path
    work: Path


@contextmanager
def open_work_dir(out: Path | str, plan: Plan) -> Iterator[WorkDir | None]:
    """Open a corpus folder, new or unfinished; None if the corpus is finished.

    Raises:
        ValueError: If it contains another corpus, with the differences, or other files, or if another process uses it.
    """
    folder = check_local(out)
    if (folder / INDEX_NAME).is_file():
        _check_finished(folder, plan)
        yield None
        return
    work = folder / WORK
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    if not work.is_dir() and (files := _unexpected_files(folder)):
        raise ValueError(f"{folder} holds {files[0]!r} ({len(files)} in all); choose an empty folder")
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(work / "lock"))
        except LockedError:
            raise ValueError(f"another process is making the corpus in {folder}; wait for it, or end it") from None
        _load_or_write_plan(work, plan)
        remove_partials(folder)
        remove_partials(work)
        yield WorkDir(out=folder, work=work)


def _unexpected_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ANSWERS) if folder.is_dir() else []


def _load_or_write_plan(work: Path, plan: Plan) -> None:
    path = work / _PLAN
    if path.is_file():
        _compare(read_json(path), plan, f"{work.parent} holds an unfinished corpus", f"delete {work} to begin again")
    else:
        write_json(path, plan)


def _check_finished(folder: Path, plan: Plan) -> None:
    if not (folder / CARD).is_file():
        raise ValueError(f"{folder} already holds another corpus, without a {CARD}; choose another folder or delete this one")
    made = read_json(folder / CARD).get("settings")
    if not isinstance(made, dict):
        raise ValueError(f"{folder / CARD} has no settings; choose another folder or delete this one")
    _compare(made, plan, f"{folder} already holds a corpus", "choose another folder or delete this one")
    for shards in CorpusIndex.load(folder).splits.values():
        for shard in shards:
            path = folder / shard.name
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise ValueError(f"{path} is gone or has not the {shard.bytes} bytes of the index; delete the folder and run again")


def _compare(made: Mapping[str, object], plan: Plan, what: str, way_out: str) -> None:
    names = [name for name in {**made, **plan} if made.get(name) != plan.get(name)]
    if names:
        differences = ", ".join(f"{name} is {made.get(name)!r} there and {plan.get(name)!r} here" for name in names)
        raise ValueError(f"{what} made with other settings: {differences}; {way_out}")
