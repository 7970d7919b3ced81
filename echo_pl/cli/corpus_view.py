"""Show the studies of a shard as one HTML page: images, both versions of the report, imputed sentences marked, labels.

    echo-pl view outputs/data/iu/train-000000.tar --out outputs/look.html --studies 30

The page holds patients' images and reports, which is why it is written only where it is asked for, and readable by its owner alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from echo_pl.data.pipeline.page import corpus_page
from echo_pl.data.store.corpus_index import CorpusIndex, Shard
from echo_pl.data.store.shard_reader import decode_study, read_samples
from echo_pl.data.store.study import Study
from echo_pl.io.atomic import atomic_file


def view_shard(path: Path, out: Path, *, studies: int = 20, keys: Sequence[str] = ()) -> int:
    """Write the page; return how many studies it shows.

    Args:
        path: of the shard, in its corpus folder.
        out: of the page.
        studies: so many from the start at most.
        keys: these, in the place of the first.

    Raises:
        FileNotFoundError: there is no corpus around the shard.
        ValueError: the corpus has no such shard, the shard is damaged, or it has no such study.
    """
    index = CorpusIndex.load(path.parent)
    found = list(_wanted(path.parent, _named(index, path.name), studies, keys))
    if missing := sorted(set(keys) - {study.key for study in found}):
        raise ValueError(f"{path.name} has no study {missing[0]!r} ({len(missing)} missing in all)")
    title = f"{index.corpus}, {path.name}"
    with atomic_file(out, private=True) as file:
        file.write(corpus_page(title, index.fingerprint, found).encode())
    return len(found)


def _named(index: CorpusIndex, name: str) -> Shard:
    names = [shard for shards in index.splits.values() for shard in shards if shard.name == name]
    if not names:
        raise ValueError(f"the index has no shard {name!r}")
    return names[0]


def _wanted(folder: Path, shard: Shard, studies: int, keys: Sequence[str]) -> Iterator[Study]:
    samples = (raw for _, raw in read_samples(folder, shard, range(shard.samples)))
    chosen = (raw for raw in samples if raw.key in keys) if keys else islice(samples, studies)
    return (decode_study(raw) for raw in chosen)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    head, tail = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        prog="echo-pl view", description=head, epilog=tail, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shard", type=Path, help="a .tar file in a corpus folder")
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--studies", type=int, default=20, help="so many from the start (default %(default)s)")
    parser.add_argument("--keys", nargs="*", default=[], help="these studies in the place of the first")
    args = parser.parse_args(arguments)
    try:
        shown = view_shard(args.shard, args.out, studies=args.studies, keys=args.keys)
    except (ValueError, OSError) as error:
        print(f"echo-pl view: {error}", file=sys.stderr)
        return 2
    print(f"{shown} studies in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
