"""Tables of words: YAML files in ``tables``, each with its source at the top, read once."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import yaml

Row = TypeVar("Row")


class _Loader(yaml.CSafeLoader):
    """Safe loader that accepts a key once only."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        if repeated := {key for key in keys if keys.count(key) > 1}:
            raise ValueError(f"{node.start_mark}: {min(repeated)!r} is a key twice")
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


@cache
def read_table(name: str) -> dict[str, Any]:
    """Return the content of ``tables/<name>.yaml``."""
    path = resources.files("echo_pl.reports") / "tables" / f"{name}.yaml"
    found: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    return found


def words_of(text: str) -> frozenset[str]:
    """Return the words of an entry that holds single words."""
    return frozenset(text.split())


def build_rows(kind: type[Row], table: str, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Row]:
    """Make one record of each row; its key becomes the record's ``name``, its lists become tuples.

    Raises:
        ValueError: a row has an unknown field or lacks one.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    found = {}
    for name, row in rows.items():
        check_names(f"{table}.yaml, {name}", row, known)
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        try:
            found[name] = kind(name=name, **given)  # type: ignore[call-arg]
        except TypeError as error:
            raise ValueError(f"{table}.yaml, {name}: {error}") from None
    return found


def check_names(where: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise ValueError if a name is not a known one; the message has the nearest known name."""
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise ValueError(f"{where}: {name!r} is unknown{f'; did you mean {near[0]!r}?' if near else ''}")
