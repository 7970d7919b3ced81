"""Settings and components of a corpus from the options of ``echo-pl corpus prepare``."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

from echo_pl.data.pipeline.components import Components, TrainTokenizer
from echo_pl.data.pipeline.entries import relative
from echo_pl.data.pipeline.plan import ANSWERS
from echo_pl.data.pipeline.recipes import (
    CheckRecipe,
    EmbeddingSearch,
    LLMRecipe,
    RuleRecipe,
    TranslatorRecipe,
    folder_digest,
)
from echo_pl.data.pipeline.settings import Settings
from echo_pl.data.readers.iu_xray import installed_archive
from echo_pl.data.readers.readers import READERS, WITHOUT_SOURCE, ReaderOption, make_reader
from echo_pl.llm.endpoint import EndpointSpec, request_options
from echo_pl.reports.redact import redact_report

FOLDER_OPTIONS = ("images", "reports")
"""Reader options that are folders."""


def make_settings(args: Namespace) -> Settings:
    """Return the settings of a command line; raise ValueError if one is out of range."""
    given = {field.name: getattr(args, field.name) for field in fields(Settings) if getattr(args, field.name, None) is not None}
    if args.modalities is not None:
        given["modalities"] = () if args.modalities == ["all"] else tuple(name.upper() for name in args.modalities)
    if args.languages is not None:
        given["languages"] = tuple(args.languages)
    return Settings(**given)


def make_components(args: Namespace, search: EmbeddingSearch | None) -> Components:
    """Return the components that a command line names.

    Raises:
        FileNotFoundError: If the source is missing.
        ValueError: If options contradict each other, or the reader has no such option.
    """
    if args.reader not in READERS:
        near = get_close_matches(args.reader, READERS) or sorted(READERS)
        raise ValueError(f"no reader {args.reader!r}: did you mean {' or '.join(near[:3])}? --help lists all")
    source, options = _source(args), _reader_options(args.reader_option or ())
    endpoint = _endpoint(args) if args.engine == "llm" or args.chinese_share > 0 else None
    engine = RuleRecipe() if endpoint is None or args.engine == "rules" else LLMRecipe(endpoint=endpoint, language=args.language)
    return Components(
        source=source,
        reader=make_reader(args.reader, source, options),
        reader_options={name: _recorded(name, value, source) for name, value in options.items()},
        engine=engine,
        engine_waits=args.engine == "llm",
        check=CheckRecipe(verbatim=args.engine == "rules"),
        redact=redact_report if args.redact else None,
        translator=TranslatorRecipe(endpoint=endpoint) if endpoint is not None and args.chinese_share > 0 else None,
        duplicates=search,
        general=args.general,
        tokenizer=_tokenizer(args),
        tokenizer_name="trained" if args.tokenizer is None else f"copied-{folder_digest(args.tokenizer)}",
    )


def _source(args: Namespace) -> Path:
    if args.reader == WITHOUT_SOURCE:
        if args.source is not None:
            raise ValueError(f"the reader {WITHOUT_SOURCE} locates its dataset itself; leave --source out")
        return installed_archive()
    if args.source is None:
        raise ValueError(f"the reader {args.reader} needs --source")
    return Path(args.source)


def _reader_options(given: Iterable[str]) -> dict[str, ReaderOption]:
    """Parse ``a=1`` to ``{"a": "1"}``, and ``columns.key=id`` to ``{"columns": {"key": "id"}}``."""
    options: dict[str, ReaderOption] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals or not name:
            raise ValueError(f"--reader-option must be NAME=VALUE, got {one!r}")
        outer, dot, inner = name.partition(".")
        before = options.get(outer, {})
        if not dot:
            options[outer] = text
        elif isinstance(before, dict):
            options[outer] = {**before, inner: text}
        else:
            raise ValueError(f"--reader-option gives {outer!r} a value, so it has no {name!r}")
    return options


def _recorded(name: str, given: ReaderOption, source: Path) -> str:
    """Option for the record; a folder relative to the source, so that both may be moved together."""
    if isinstance(given, dict):
        return json.dumps(given, sort_keys=True)
    return relative(Path(given), source if source.is_dir() else source.parent) if name in FOLDER_OPTIONS else given


def _endpoint(args: Namespace) -> EndpointSpec:
    if not args.endpoint or not args.model:
        raise ValueError("--engine llm and --chinese-share need --endpoint and --model")
    return EndpointSpec(
        base_url=args.endpoint,
        model=args.model,
        answers=args.out / ANSWERS if args.answers is None else args.answers,
        api_key_variable=args.api_key_variable,
        concurrency=args.concurrency,
        timeout=args.timeout,
        options=request_options(args.request_option or [], temperature=args.temperature, max_tokens=args.max_tokens),
    )


def _tokenizer(args: Namespace) -> TrainTokenizer:
    def train(texts: Iterable[str], folder: Path) -> None:
        from echo_pl.data.loading.tokenizer import train_tokenizer  # takes seconds to import, and workers do not need it

        train_tokenizer(texts, folder, vocab_size=args.vocab_size)

    def copy(texts: Iterable[str], folder: Path) -> None:
        from echo_pl.data.loading.tokenizer import load_tokenizer

        load_tokenizer(args.tokenizer)  # raises an error for an unusable one
        folder.mkdir(exist_ok=True)
        for path in sorted(path for path in args.tokenizer.iterdir() if path.is_file()):
            shutil.copyfile(path, folder / path.name)

    return train if args.tokenizer is None else copy
