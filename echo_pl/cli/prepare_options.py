"""The command line of :mod:`echo_pl.cli.corpus_prepare`: from options to settings and to who does the work.

Knows every reader and part by name; runs nothing.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from echo_pl.data.pipeline.entries import relative
from echo_pl.data.pipeline.parts import Parts, TrainTokenizer
from echo_pl.data.pipeline.plan import ANSWERS
from echo_pl.data.pipeline.recipes import (
    CheckRecipe,
    EmbeddingSearch,
    LLMRecipe,
    RuleRecipe,
    TranslatorRecipe,
    folder_digest,
)
from echo_pl.data.pipeline.settings import DuplicateText, Settings, SplitRule
from echo_pl.data.readers.iu_openi import installed_archive
from echo_pl.data.readers.reader import CorpusReader
from echo_pl.data.readers.readers import READERS
from echo_pl.llm.endpoint import EndpointSpec, request_options
from echo_pl.reports.redact import redact_report
from echo_pl.reports.response import FORMS

DEFAULTS = Settings()
COMMAND = "echo-pl prepare"
WITHOUT_SOURCE = "iu_installed"
"""The reader that finds its dataset itself."""
SHOWN = "(default %(default)s)"
FOLDER_OPTIONS = ("images", "reports")
"""Options of readers that are folders."""
Option = str | dict[str, str]
OWN_COSINE = -1.0
"""In the place of a cosine: the embedder's."""


def parse(arguments: Sequence[str] | None, manual: str) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments: None: those of this process.
        manual: for ``--help``: what the command does in its first paragraph, the rest behind the options.
    """
    head, tail = manual.split("\n\n", 1)
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description=head,
        epilog=f"{tail}\n{readers_manual()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_source(parser)
    _add_engine(parser)
    _add_selection(parser)
    _add_form(parser)
    run = parser.add_argument_group("the run (none of this changes the corpus)")
    run.add_argument(
        "--workers", type=int, default=min(8, len(os.sched_getaffinity(0))), help="processes (default %(default)s; 0: one)"
    )
    run.add_argument("--keep-work", action="store_true", help="keep the work folder, which holds report text")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser.parse_args(arguments)


def _add_source(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("source and target")
    group.add_argument("--reader", required=True, choices=sorted(READERS), help="which dataset it is, see below")
    group.add_argument("--source", type=Path, help=f"its folder or file (not for {WITHOUT_SOURCE})")
    group.add_argument(
        "--reader-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what else the reader is told: images=FOLDER, columns.findings=Text, rows=image ...; may be given several times",
    )
    group.add_argument("--out", type=Path, required=True, help="corpus folder, new or to be gone on with")


def _add_engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("normalizer and translation")
    group.add_argument("--engine", choices=("rules", "llm"), default="rules", help=f"who normalizes {SHOWN}")
    group.add_argument("--language", choices=sorted(FORMS), default="en", help=f"what --engine llm writes in {SHOWN}")
    group.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible, such as http://localhost:8000/v1")
    group.add_argument("--model", help="its name at the endpoint")
    group.add_argument("--api-key-variable", metavar="NAME", help="environment variable with the endpoint's key")
    group.add_argument("--concurrency", type=int, default=8, help=f"requests at once {SHOWN}")
    group.add_argument("--timeout", type=float, default=300.0, help=f"seconds for one answer {SHOWN}")
    group.add_argument("--temperature", type=float, help="of the model (default 0)")
    group.add_argument("--max-tokens", type=int, help="of one answer (default 2048); four times as many if it is cut off")
    group.add_argument(
        "--request-option",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="further field of every request, such as chat_template_kwargs='{\"enable_thinking\": false}'; null removes one",
    )
    group.add_argument("--answers", type=Path, help=f"folder that keeps the model's answers (default: {ANSWERS} in --out)")
    group.add_argument("--chinese-share", type=float, default=0.0, help="share of reports translated by the model (default 0)")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which studies")
    group.add_argument("--modalities", nargs="*", default=DEFAULTS.modalities, help=f"others are left out {SHOWN}; none: all pass")
    group.add_argument("--languages", nargs="*", default=DEFAULTS.languages, help=f"others are rejected {SHOWN}")
    group.add_argument("--keep-incomplete", action="store_true", help="keep reports without findings or without impression")
    group.add_argument("--redact", action="store_true", help="take dates, names and ids out by pattern; number studies anew")
    group.add_argument(
        "--near-duplicates",
        type=float,
        nargs="?",
        const=OWN_COSINE,
        metavar="COSINE",
        help="leave them out of train (default cosine: the embedder's)",
    )
    group.add_argument("--duplicate-text", choices=get_args(DuplicateText), default=DEFAULTS.duplicate_text, help=SHOWN)
    group.add_argument("--splits", choices=get_args(SplitRule), default=DEFAULTS.splits, help=SHOWN)
    group.add_argument("--val-share", type=float, default=DEFAULTS.val_share, help=f"of patients {SHOWN}")
    group.add_argument("--test-share", type=float, default=DEFAULTS.test_share, help=f"of patients {SHOWN}")
    group.add_argument("--seed", type=int, default=DEFAULTS.seed, help=f"of splits, order and choices {SHOWN}")


def _add_form(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("shards and tokenizer")
    group.add_argument("--max-pixels", type=int, default=DEFAULTS.max_pixels, help=f"of one image {SHOWN}")
    group.add_argument("--shard-size", type=int, default=DEFAULTS.shard_size, help=f"studies of one shard {SHOWN}")
    group.add_argument("--general", type=Path, metavar="JSONL", help="general samples for train, a line each: image, text, prompt")
    group.add_argument("--general-weight", type=float, default=0.0, help="so many for each training study")
    group.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="a saved tokenizer to copy; without: one is trained")
    group.add_argument("--vocab-size", type=int, default=DEFAULTS.vocab_size, help=f"of the trained one, at most {SHOWN}")
    group.add_argument(
        "--tokenizer-reports",
        type=int,
        default=DEFAULTS.tokenizer_reports,
        help=f"that it is trained on, at most {SHOWN}",
    )


def make_settings(args: argparse.Namespace, search: EmbeddingSearch | None) -> Settings:
    """The settings that a command line asks for.

    Raises:
        ValueError: one is out of range.
    """
    cosine = args.near_duplicates
    return Settings(
        seed=args.seed,
        modalities=tuple(name.upper() for name in args.modalities),
        languages=tuple(args.languages),
        keep_incomplete=args.keep_incomplete,
        redact=args.redact,
        near_duplicates=search.threshold if search is not None and cosine == OWN_COSINE else cosine,
        duplicate_text=args.duplicate_text,
        chinese_share=args.chinese_share,
        splits=args.splits,
        val_share=args.val_share,
        test_share=args.test_share,
        max_pixels=args.max_pixels,
        shard_size=args.shard_size,
        general_weight=args.general_weight,
        vocab_size=args.vocab_size,
        tokenizer_reports=args.tokenizer_reports,
    )


def make_parts(args: argparse.Namespace, search: EmbeddingSearch | None) -> Parts:
    """Everybody that a command line asks for.

    Raises:
        FileNotFoundError: the source is not there.
        ValueError: options do not go together, or the reader does not know one.
    """
    source, options = _source(args), _reader_options(args.reader_option)
    asks = args.engine == "llm" or args.chinese_share > 0
    endpoint = _endpoint(args) if asks else None
    engine = RuleRecipe() if endpoint is None or args.engine == "rules" else LLMRecipe.of(endpoint, args.language)
    return Parts(
        source=source,
        reader=make_reader(args.reader, source, options),
        reader_options={name: _recorded(name, value, source) for name, value in options.items()},
        engine=engine,
        engine_waits=args.engine == "llm",
        check=CheckRecipe(verbatim=args.engine == "rules"),
        redact=redact_report if args.redact else None,
        translator=TranslatorRecipe.of(endpoint) if endpoint is not None and args.chinese_share > 0 else None,
        duplicates=search,
        general=args.general,
        tokenizer=_tokenizer(args),
        tokenizer_name="trained" if args.tokenizer is None else f"copied-{folder_digest(args.tokenizer)}",
    )


def make_reader(name: str, source: Path, options: Mapping[str, Option]) -> CorpusReader:
    """A reader by name.

    Raises:
        FileNotFoundError: the dataset is not where it should be.
        ValueError: it knows no such option, or not with such a value.
    """
    make = READERS[name]
    known = reader_options(name)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"the reader {name} has no option {unknown[0]!r}, only {list(known)}")
    given = {each: _value(each, value, known[each]) for each, value in options.items()}
    return make(**given) if name == WITHOUT_SOURCE else make(source, **given)


def reader_options(name: str) -> dict[str, object]:
    """What a reader may be told besides the dataset's place, which is its one argument by position; with its defaults."""
    parameters = inspect.signature(READERS[name]).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}


def readers_manual() -> str:
    """A paragraph for each reader: what it reads, by the first words of its file, and its options."""
    lines = ["readers (files wanted, where they are from and licences: docs/reference/readers.md):"]
    for name, make in READERS.items():
        of = inspect.getdoc(make if name == WITHOUT_SOURCE else inspect.getmodule(make)) or ""
        told = " ".join(of.split("\n\n")[0].split()).replace("``", "")
        lines += textwrap.wrap(f"{name}: {told}", 120, initial_indent="  ", subsequent_indent="      ")
        if options := reader_options(name):
            lines.append(f"      --reader-option: {', '.join(options)}")
    return "\n".join(lines)


def _source(args: argparse.Namespace) -> Path:
    if args.reader == WITHOUT_SOURCE:
        if args.source is not None:
            raise ValueError(f"the reader {WITHOUT_SOURCE} finds its dataset itself; leave --source out")
        return installed_archive()
    if args.source is None:
        raise ValueError(f"the reader {args.reader} needs --source")
    return Path(args.source)


def _reader_options(given: Iterable[str]) -> dict[str, Option]:
    """``a=1`` as ``{"a": "1"}``, ``columns.key=id`` as ``{"columns": {"key": "id"}}``."""
    options: dict[str, Option] = {}
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


def _value(name: str, given: Option, default: object) -> object:
    """A number where the reader's own value is one, None for ``null``; otherwise the text itself."""
    if given == "null":
        return None
    if not isinstance(default, int | float):
        return given
    try:
        return type(default)(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"--reader-option {name} must be a number, got {given!r}") from None


def _recorded(name: str, given: Option, source: Path) -> str:
    """An option for the record: a folder as seen from the source, so that the record is the same wherever both are."""
    if isinstance(given, dict):
        return json.dumps(given, sort_keys=True)
    return relative(Path(given), source if source.is_dir() else source.parent) if name in FOLDER_OPTIONS else given


def _endpoint(args: argparse.Namespace) -> EndpointSpec:
    if not args.endpoint or not args.model:
        raise ValueError("--engine llm and --chinese-share need --endpoint and --model")
    return EndpointSpec(
        base_url=args.endpoint,
        model=args.model,
        answers=args.out / ANSWERS if args.answers is None else args.answers,
        api_key_variable=args.api_key_variable,
        concurrency=args.concurrency,
        timeout=args.timeout,
        options=request_options(args.request_option, temperature=args.temperature, max_tokens=args.max_tokens),
    )


def _tokenizer(args: argparse.Namespace) -> TrainTokenizer:
    def train(texts: Iterable[str], folder: Path) -> None:
        from echo_pl.data.loading.tokenizer import train_tokenizer  # not in workers, which import this file: it takes seconds

        train_tokenizer(texts, folder, vocab_size=args.vocab_size)

    def copy(texts: Iterable[str], folder: Path) -> None:
        from echo_pl.data.loading.tokenizer import load_tokenizer

        load_tokenizer(args.tokenizer)  # refuses one that will not do
        folder.mkdir(exist_ok=True)
        for path in sorted(path for path in args.tokenizer.iterdir() if path.is_file()):
            shutil.copyfile(path, folder / path.name)

    return train if args.tokenizer is None else copy
