"""Make a corpus of a dataset: read, normalize, check, leave out near-duplicates, translate, write shards, index and dataset card.

    echo-pl prepare --reader iu_openi --source ecgen-radiology --reader-option images=NLMCXR_png --out outputs/data/iu --workers 4

An interrupted or killed run is continued by the same command, and the result is the same byte for byte. Report text is in no
message; rejects.jsonl, review.jsonl and the work folder (.work, removed at the end) are readable by their owner alone.

exit status:
  0    the corpus is there, and all that was wanted is in it
  2    bad usage: an option, a source or a folder that does not fit
  3    the corpus is there, but studies or images were rejected or left to review: see the card, rejects.jsonl, review.jsonl
  1    the run ended before the corpus was there: the disk is full, a process has died, the endpoint refuses
  128 + n   signal n ended the run; run the same command again to go on
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from echo_pl.cli.prepare_options import COMMAND, make_parts, make_settings, parse
from echo_pl.data.pipeline.listing import INCOMPLETE
from echo_pl.data.pipeline.publishing import REJECTS, REVIEW
from echo_pl.data.pipeline.recipes import EmbeddingSearch, usages
from echo_pl.data.pipeline.run import Corpus, prepare
from echo_pl.io.stop_signals import SignalledError, stop_on_signals
from echo_pl.reports.embeddings import default_embedder


def summary(corpus: Corpus, out: Path) -> str:
    """What was made, for a person."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse(arguments, __doc__ or "")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        with stop_on_signals():
            search = None if args.near_duplicates is None else EmbeddingSearch(default_embedder())
            settings, parts = make_settings(args, search), make_parts(args, search)
            corpus = prepare(args.out, settings, parts, workers=args.workers, progress=not args.quiet, keep_work=args.keep_work)
    except SignalledError as stop:
        print(f"{COMMAND}: {stop}; run the same command again to go on", file=sys.stderr)
        return 128 + stop.number
    except (ValueError, FileNotFoundError) as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(f"{COMMAND}: {args.out}: {error}; what is done is kept: run the same command again to go on", file=sys.stderr)
        return 1
    print(summary(corpus, args.out))
    for name, usage in usages(parts).items():
        print(f"  {name}: {usage}")
    return 3 if corpus.card.rejected or corpus.card.lost_images or corpus.card.reviewed else 0


if __name__ == "__main__":
    sys.exit(main())
