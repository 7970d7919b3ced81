"""`echo-pl bench`: time decoding, training steps and reading on this machine; train with noisy copies at equal time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from echo_pl.cli.grammar import Overrides, command, tree


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    verbs = tree("Time decoding, training steps and reading on this machine.")
    app.add_typer(verbs, name="bench")

    @command(
        verbs,
        "decode",
        "echo-pl bench decode models=[tiny] batch_sizes=[1] contexts=[300]     # two minutes",
        "echo-pl bench decode                                                  # over two hours",
    )
    def decode(overrides: Overrides = None) -> None:
        """Time autoregressive, multi-step and one-step decoding.

        All take the same random weights and run interleaved. Keys and defaults:
        experiments/bench/decode.yaml. Writes decode.json, decode.md and decode.png to
        outputs/bench.
        """
        from echo_pl.bench.decode_report import bench_decode

        _print_files(bench_decode(overrides or []))

    @command(
        verbs,
        "train",
        "echo-pl bench train models=[d128] contexts=[256] repetitions=1",
        "echo-pl bench train precision=32-true out=outputs/bench/fp32",
    )
    def train(overrides: Overrides = None) -> None:
        """Time training steps of several variants.

        Autoregressive, full duplication, RAD dense and split, noisy copies, stored features. Keys
        and defaults: experiments/bench/rad.yaml. Writes rad.json and rad.md to outputs/bench.
        """
        from echo_pl.bench.train import bench_train

        _print_files(bench_train(overrides or []))

    @command(verbs, "data", "echo-pl bench data", "echo-pl bench data --rounds 9 --workers 0 2 4")
    def data(
        out: Annotated[Path, Option(help="Folder of data.json.")] = Path("outputs/bench"),
        studies: Annotated[int, Option(min=1, help="Studies of the corpus that is made.")] = 400,
        side: Annotated[int, Option(help="Width and height of its images in pixels.")] = 512,
        rounds: Annotated[int, Option(min=1, help="Rounds after one that does not count.")] = 5,
        workers: Annotated[
            list[int] | None, Option(metavar="N ...", help="Reading processes, 0 among them.", show_default="0 1 2")
        ] = None,
    ) -> None:
        """Time reading shards, decoding images and making batches.

        Shards are read from a folder and over HTTP.
        """
        from echo_pl.bench.data import run_bench, table

        print(table(run_bench(out, studies=studies, side=side, rounds=rounds, workers=workers or [0, 1, 2])))
        _print_files([out / "data.json"])

    @command(
        verbs,
        "copies",
        "echo-pl bench copies                                                  # 20 minutes, from the newest stage 1",
        "echo-pl bench copies --copies 1 4 --minutes 3 start=outputs/demo/runs/stage1/checkpoints/final.ckpt",
    )
    def copies(
        overrides: Overrides = None,
        copies: Annotated[list[int] | None, Option(metavar="K ...", help="Noisy copies to compare (default 1 2 4).")] = None,
        minutes: Annotated[float, Option(help="Training time of each.")] = 5.0,
        studies: Annotated[int, Option(min=1, help="Held-out studies to decode.")] = 304,
        out: Annotated[Path, Option(help="Folder of copies.json and copies.md.")] = Path("outputs/bench/copies"),
    ) -> None:
        """Train stage 2 with K noisy copies, each K for the same time.

        All models decode the same held-out studies.
        """
        from echo_pl.bench.copies import COLUMNS, compare
        from echo_pl.pages.tables import Table

        record = compare(copies or [1, 2, 4], minutes, studies, out, overrides or [])
        print("\n" + Table.from_records(COLUMNS, record["rows"]).text())


def _print_files(files: Sequence[Path]) -> None:
    print("written: " + ", ".join(map(str, files)))
