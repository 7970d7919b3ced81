"""`echo-pl corpus prepare`: a dataset's files to a corpus folder."""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Option

from echo_pl.cli.grammar import DONE_WITH_REJECTS, Verb, command
from echo_pl.data.pipeline.settings import DuplicateText, Settings, SplitRule

if TYPE_CHECKING:
    from echo_pl.data.pipeline.run import PreparedCorpus

COMMAND = "echo-pl corpus prepare"
DEFAULTS = Settings()
OWN_COSINE = -1.0
"""Stands for the cosine of the embedder: ``--near-duplicates`` without a number."""


class PrepareVerb(Verb):
    """A command whose help lists the readers, and whose ``--near-duplicates`` needs no value."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Give ``--near-duplicates`` its value, and drop ``--modalities`` without one: all pass then."""
        given: list[str] = []
        for place, argument in enumerate(args):
            follows = args[place + 1] if place + 1 < len(args) else "--"
            given.append(argument)
            if argument == "--near-duplicates" and not follows.replace(".", "", 1).isdecimal():
                given.append(str(OWN_COSINE))
            elif argument == "--modalities" and follows.startswith("--"):
                given.append("all")
        return super().parse_args(ctx, given)

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the examples, then every reader with its options."""
        from echo_pl.data.readers.readers import readers_manual

        super().format_epilog(ctx, formatter)
        formatter.write("\n" + readers_manual() + "\n")


def add_commands(app: typer.Typer) -> None:
    """Register the command."""

    @command(
        app,
        "prepare",
        "echo-pl corpus prepare --reader iu_openi --source ecgen-radiology --reader-option images=NLMCXR_png --out outputs/data/iu",
        "echo-pl corpus prepare --reader table --source reports.csv --reader-option images=png columns.patient=patient \\\n"
        "      --out outputs/data/ours",
        cls=PrepareVerb,
    )
    def prepare(
        reader: Annotated[str, Option(help="Dataset; the readers are listed below.")],
        out: Annotated[Path, Option(help="Corpus folder, new or to continue.")],
        source: Annotated[Path | None, Option(help="Folder or file of the dataset (not for iu_installed).")] = None,
        reader_option: Annotated[
            list[str] | None, Option(metavar="NAME=VALUE ...", help="Options of the reader: images=FOLDER, columns.findings=Text.")
        ] = None,
        engine: Annotated[Literal["rules", "llm"], Option(help="Normalizer.")] = "rules",
        language: Annotated[Literal["en", "zh"], Option(help="Language that --engine llm writes.")] = "en",
        endpoint: Annotated[str | None, Option(metavar="URL", help="OpenAI-compatible: http://localhost:8000/v1.")] = None,
        model: Annotated[str | None, Option(help="Name of the model at the endpoint.")] = None,
        api_key_variable: Annotated[str | None, Option(metavar="NAME", help="Environment variable with the key.")] = None,
        concurrency: Annotated[int, Option(help="Requests at once.")] = 8,
        timeout: Annotated[float, Option(help="Seconds for one answer.")] = 300.0,
        temperature: Annotated[float | None, Option(help="Temperature of the model.", show_default="0")] = None,
        max_tokens: Annotated[
            int | None, Option(help="Most tokens of one answer; four times as many if it is cut off.", show_default="2048")
        ] = None,
        request_option: Annotated[
            list[str] | None,
            Option(
                metavar="NAME=JSON ...",
                help="Further fields of every request: chat_template_kwargs='{\"enable_thinking\": false}'; null removes one.",
            ),
        ] = None,
        answers: Annotated[Path | None, Option(help="Folder that keeps the model's answers (default: in --out).")] = None,
        chinese_share: Annotated[float, Option(help="Share of reports that the model translates.")] = 0.0,
        modalities: Annotated[
            list[str] | None,
            Option(metavar="NAME ...", help="Modalities to keep, or all.", show_default="chest X-rays"),
        ] = None,
        languages: Annotated[list[str] | None, Option(metavar="NAME ...", help="Languages to keep.", show_default="en zh")] = None,
        keep_incomplete: Annotated[bool, Option("--keep-incomplete", help="Keep reports without findings or impression.")] = False,
        redact: Annotated[bool, Option("--redact", help="Remove dates, names and ids by pattern; number studies again.")] = False,
        near_duplicates: Annotated[
            float | None, Option(metavar="[COSINE]", help="Leave near-duplicates out of train (default: the embedder's cosine).")
        ] = None,
        duplicate_text: Annotated[DuplicateText, Option(help="Reports compared for near-duplicates.")] = DEFAULTS.duplicate_text,
        splits: Annotated[SplitRule, Option(help="Origin of the splits.")] = DEFAULTS.splits,
        val_share: Annotated[float, Option(help="Share of patients in val.")] = DEFAULTS.val_share,
        test_share: Annotated[float, Option(help="Share of patients in test.")] = DEFAULTS.test_share,
        seed: Annotated[int, Option(help="Seed of splits, order and choices.")] = DEFAULTS.seed,
        max_pixels: Annotated[int, Option(help="Most pixels of an image.")] = DEFAULTS.max_pixels,
        shard_size: Annotated[int, Option(help="Studies of one shard.")] = DEFAULTS.shard_size,
        general: Annotated[Path | None, Option(metavar="JSONL", help="General samples for train: image, text, prompt.")] = None,
        general_weight: Annotated[float, Option(help="General samples for each training study.")] = 0.0,
        tokenizer: Annotated[Path | None, Option(metavar="FOLDER", help="Saved tokenizer to copy, not trained.")] = None,
        vocab_size: Annotated[int, Option(help="Most ids of a trained tokenizer.")] = DEFAULTS.vocab_size,
        tokenizer_reports: Annotated[int, Option(help="Most reports that it is trained on.")] = DEFAULTS.tokenizer_reports,
        workers: Annotated[int, Option(help="Processes; 0: this one alone.")] = min(8, len(os.sched_getaffinity(0))),
        keep_work: Annotated[bool, Option("--keep-work", help="Keep the work folder, which holds report text.")] = False,
        quiet: Annotated[bool, Option("--quiet", help="No progress bars.")] = False,
    ) -> None:
        """Make a corpus of a dataset of reports and images.

        Steps: read, normalize, check, leave out near-duplicates, translate, write shards. The same
        command continues an interrupted or killed run, and the result is the same byte for byte. No
        message holds report text. rejects.jsonl, review.jsonl and the work folder are readable by
        their owner alone. Exit status 3: the corpus is made, and studies or images were rejected or
        left to review.
        """
        raise typer.Exit(_prepare(Namespace(**locals())))


def _prepare(args: Namespace) -> int:
    from echo_pl.data.pipeline.options import make_components, make_settings
    from echo_pl.data.pipeline.recipes import EmbeddingSearch, usages
    from echo_pl.data.pipeline.run import prepare
    from echo_pl.io.stop_signals import SignalledError, stop_on_signals
    from echo_pl.reports.embeddings import default_embedder

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        with stop_on_signals():
            search = None if args.near_duplicates is None else EmbeddingSearch(default_embedder())
            if args.near_duplicates == OWN_COSINE and search is not None:
                args.near_duplicates = search.threshold
            settings, components = make_settings(args), make_components(args, search)
            corpus = prepare(
                args.out, settings, components, workers=args.workers, progress=not args.quiet, keep_work=args.keep_work
            )
    except SignalledError as stop:
        print(f"{COMMAND}: {stop}; run the same command again to continue", file=sys.stderr)
        return 128 + stop.number
    except (ValueError, FileNotFoundError) as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(f"{COMMAND}: {args.out}: {error}; finished work is kept: run the same command again to continue", file=sys.stderr)
        return 1
    print(summary(corpus, args.out))
    for name, usage in usages(components).items():
        print(f"  {name}: {usage}")
    return (
        DONE_WITH_REJECTS
        if corpus.card.left_out("reject") or corpus.card.left_out("image") or corpus.card.left_out("review")
        else 0
    )


def summary(corpus: PreparedCorpus, out: Path) -> str:
    """Summary of the corpus for a person."""
    from echo_pl.data.pipeline.entries import INCOMPLETE
    from echo_pl.data.pipeline.publish import REJECTS, REVIEW

    record = corpus.card.record
    splits = ", ".join(f"{of['studies']} {split}" for split, of in record["splits"].items())
    lines = [
        f"{record['corpus']} corpus {record['fingerprint']} {'found' if corpus.found else 'made'} in {out}: {splits} studies "
        f"of {record['entries_in_source']} entries"
    ]
    shown = (
        ("reject", "rejected", REJECTS),
        ("image", "images lost of studies that stay", REJECTS),
        ("review", "to review", REVIEW),
        ("filtered", "filtered out", REJECTS),
    )
    for kind, name, file in shown:
        if reasons := record["left_out"][kind]:
            listed = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
            lines.append(f"  {name}: {sum(reasons.values())}, see {file} ({listed})")
    if f"read: {INCOMPLETE}" in record["left_out"]["filtered"]:
        lines.append(f"  {INCOMPLETE}: without findings or without impression; --keep-incomplete uses such reports")
    return "\n".join(lines)
