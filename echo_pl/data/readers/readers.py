"""Readers by name, with their options for a command line."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from echo_pl.data.readers.chexpert_plus import CheXpertPlusReader
from echo_pl.data.readers.echo_json import ECHOJSONReader
from echo_pl.data.readers.iu_xray import InstalledOpenIReader, KaggleIUReader, OpenIReader, R2GenReader
from echo_pl.data.readers.mimic_cxr import MIMICCXRReader
from echo_pl.data.readers.nih_chestxray14 import NIHChestXray14Reader
from echo_pl.data.readers.padchest_gr import PadChestGRReader
from echo_pl.data.readers.reader import CorpusReader
from echo_pl.data.readers.rexgradient import ReXGradientReader
from echo_pl.data.readers.table_corpus import TableReader

READERS: Final[Mapping[str, Callable[..., CorpusReader]]] = {
    "iu_openi": OpenIReader,
    "iu_installed": InstalledOpenIReader,
    "iu_r2gen": R2GenReader,
    "iu_kaggle": KaggleIUReader,
    "mimic_cxr": MIMICCXRReader,
    "chexpert_plus": CheXpertPlusReader,
    "rexgradient": ReXGradientReader,
    "padchest_gr": PadChestGRReader,
    "nih_chestxray14": NIHChestXray14Reader,
    "echo_json": ECHOJSONReader,
    "table": TableReader,
}
"""Each takes the dataset's path first, except for ``iu_installed``."""
WITHOUT_SOURCE: Final = "iu_installed"
"""Reader that locates its dataset itself."""
ReaderOption = str | dict[str, str]


def make_reader(name: str, source: Path, options: Mapping[str, ReaderOption]) -> CorpusReader:
    """Return a reader by name.

    Raises:
        FileNotFoundError: If the dataset is missing.
        ValueError: If the reader has no such option, or not with such a value.
    """
    make = READERS[name]
    known = reader_options(name)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"the reader {name} has no option {unknown[0]!r}, only {list(known)}")
    given = {each: _value(each, value, known[each]) for each, value in options.items()}
    return make(**given) if name == WITHOUT_SOURCE else make(source, **given)


def reader_options(name: str) -> dict[str, object]:
    """Return the keyword options of a reader, with their defaults."""
    parameters = inspect.signature(READERS[name]).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}


def readers_manual() -> str:
    """Return a paragraph for each reader: summary of its class, and its options."""
    lines = ["readers (files wanted, where they are from and licences: docs/reference/readers.md):"]
    for name, make in READERS.items():
        summary = (inspect.getdoc(make) or "").split("\n")[0].replace("``", "")
        lines += textwrap.wrap(f"{name}: {summary}", 120, initial_indent="  ", subsequent_indent="      ")
        if options := reader_options(name):
            lines.append(f"      --reader-option: {', '.join(options)}")
    return "\n".join(lines)


def _value(name: str, given: ReaderOption, default: object) -> object:
    """Number if the default is one, None for ``null``, otherwise the text itself."""
    if given == "null":
        return None
    if not isinstance(default, int | float):
        return given
    try:
        return type(default)(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"--reader-option {name} must be a number, got {given!r}") from None
