"""The identity of a corpus in the making, and its work folder: who may go on there, and what is there already.

A plan is everything that decides the bytes of a corpus and is known before the first study is read. The same command finds its
own work and goes on; another one is refused with the difference named.
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

from echo_pl.data.pipeline.files import read_json
from echo_pl.data.pipeline.parts import Parts
from echo_pl.data.pipeline.settings import Settings
from echo_pl.data.readers.reader import safe_key
from echo_pl.data.store.corpus_index import INDEX_NAME, CorpusIndex, check_local
from echo_pl.io.atomic import remove_partials, write_json
from echo_pl.io.locks import LockedError, exclusive_lock

PIPELINE_VERSION: Final = 2
"""Raised when the same settings make other bytes."""
WORK: Final = ".work"
ANSWERS: Final = ".answers"
"""Where the answers of a language model may be kept, between corpora: no part of the corpus."""
CARD: Final = "card.json"
_PLAN: Final = "plan.json"
_TABLES: Final = (".csv", ".tsv", ".json", ".jsonl", ".xml", ".txt")

Plan = Mapping[str, str | int | float | bool | None]


def make_plan(settings: Settings, parts: Parts) -> Plan:
    """Everything that decides the corpus, by name.

    Raises:
        FileNotFoundError: the source is not there.
        ValueError: something was asked for that no part can do, or the other way round; or the corpus has a name that is none.
    """
    _check_parts(settings, parts)
    if safe_key(parts.reader.name) != parts.reader.name:
        raise ValueError(f"a corpus's name must be made of letters, digits, '-' and '_', got {parts.reader.name!r}")
    return {
        "pipeline": PIPELINE_VERSION,
        "echo_pl": version("echo-pl"),
        "pillow": version("Pillow"),
        "reader": parts.reader.name,
        "reader_options": json.dumps(dict(sorted(parts.reader_options.items()))),
        "source": source_stamp(parts.source),
        "normalizer": parts.engine.name,
        "check": parts.check.name,
        "translator": None if parts.translator is None else parts.translator.name,
        "duplicate_search": None if parts.duplicates is None else parts.duplicates.name,
        "general": None if parts.general is None else source_stamp(parts.general),
        "tokenizer": parts.tokenizer_name,
        **settings.as_options(),
    }


def _check_parts(settings: Settings, parts: Parts) -> None:
    needs = {
        "redact": (settings.redact, parts.redact is not None),
        "near_duplicates": (settings.near_duplicates is not None, parts.duplicates is not None),
        "chinese_share": (settings.chinese_share > 0, parts.translator is not None),
        "general_weight": (settings.general_weight > 0, parts.general is not None),
    }
    for name, (asked, there) in needs.items():
        if asked != there:
            raise ValueError(f"{name} and who does it go together: asked for: {asked}, given: {there}")


def source_stamp(source: Path) -> str:
    """Hash of a dataset's tables, every byte: of a file, or of those in a folder and in the folders directly in it.

    In a folder tables are told by their names, also gzipped; archives are not read there, so they are no part of it. Reports in
    files of their own further down (MIMIC-CXR) and images are looked at where the source is listed.

    Raises:
        FileNotFoundError: there is no such file or folder.
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
class Workplace:
    """The corpus folder, and the work folder in it."""

    out: Path
    work: Path


@contextmanager
def workplace(out: Path | str, plan: Plan) -> Iterator[Workplace | None]:
    """Open a corpus folder to work in, new or half done; None if it is finished already.

    Raises:
        ValueError: it holds something else, with what is different; or another process works there.
    """
    folder = check_local(out)
    if (folder / INDEX_NAME).is_file():
        _check_finished(folder, plan)
        yield None
        return
    work = folder / WORK
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    if not work.is_dir() and (strangers := _strangers(folder)):
        raise ValueError(f"{folder} holds {strangers[0]!r} ({len(strangers)} in all); choose an empty folder")
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(work / "lock"))
        except LockedError:
            raise ValueError(f"another process is making the corpus in {folder}; wait for it, or end it") from None
        _take_up(work, plan)
        remove_partials(folder)
        remove_partials(work)
        yield Workplace(out=folder, work=work)


def _strangers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ANSWERS) if folder.is_dir() else []


def _take_up(work: Path, plan: Plan) -> None:
    path = work / _PLAN
    if path.is_file():
        _compare(read_json(path), plan, f"{work.parent} holds an unfinished corpus", f"delete {work} to begin anew")
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
                raise ValueError(
                    f"{path} is gone or has not the {shard.bytes} bytes that the index says; delete the folder and run again"
                )


def _compare(made: Mapping[str, object], asked: Plan, what: str, way_out: str) -> None:
    names = [name for name in {**made, **asked} if made.get(name) != asked.get(name)]
    if names:
        differences = ", ".join(f"{name} is {made.get(name)!r} there and {asked.get(name)!r} here" for name in names)
        raise ValueError(f"{what} made with other settings: {differences}; {way_out}")
