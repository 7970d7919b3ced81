"""`echo-pl trajectories`: collect a teacher's trajectories, and measure what one step per block loses against them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from echo_pl.cli.grammar import Overrides, command, tree


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    verbs = tree("Collect trajectories of a teacher, measure mean-field gaps.")
    app.add_typer(verbs, name="trajectories")

    @command(
        verbs,
        "collect",
        "echo-pl trajectories collect --out outputs/trajectories/L8 --studies 2400 block_size=8",
        "echo-pl trajectories collect --out outputs/trajectories/tilted --studies 2400 --no-distributions \\\n"
        "      --student outputs/runs/RUN/checkpoints/final.ckpt block_size=8 ablation=tilted",
        "torchrun --nproc-per-node 2 -m echo_pl trajectories collect --out outputs/trajectories/L8 --studies 2400",
    )
    def collect(
        out: Annotated[Path, Option(help="Folder to make.")],
        studies: Annotated[int, Option(min=1, help="Training studies to decode.")],
        overrides: Overrides = None,
        batch_size: Annotated[int, Option(min=1, help="Studies decoded at once.")] = 64,
        batches_per_part: Annotated[int, Option(min=1, help="Batches in a file.")] = 4,
        keep: Annotated[
            int | None,
            Option(min=0, metavar="K", help="Likeliest tokens stored of each distribution; 0 stores all.", show_default="32"),
        ] = None,
        no_distributions: Annotated[bool, Option("--no-distributions", help="Tokens and steps only, for hard targets.")] = False,
        student: Annotated[
            Path | None, Option(metavar="CHECKPOINT", help="Stage-3 model that the teacher is tilted to (stage.module.tilt).")
        ] = None,
    ) -> None:
        """Store trajectories of the teacher for stage 3.

        The teacher decodes training studies. It is the newest stage-2 run unless start=CHECKPOINT
        names another one. Train on the result with stage.module.trajectories=OUT
        stage.limit_train=STUDIES. The same command continues an interrupted collection. Several
        processes share the work on a disk that all of them see, and write the bytes that one
        process writes.
        """
        if keep is not None and no_distributions:
            raise typer.BadParameter("give --keep or --no-distributions, not both")
        from echo_pl.distill.collect_trajectories import collect_and_report

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        kept_tokens = 32 if keep is None else keep
        collect_and_report(
            out, overrides or [], studies=studies, batch_size=batch_size, batches_per_part=batches_per_part,
            kept_tokens=kept_tokens, distributions=not no_distributions, student=student,
        )  # fmt: skip

    @command(
        verbs,
        "gap",
        "echo-pl trajectories gap --block-sizes 4 8 16 --studies 304",
        "echo-pl trajectories gap --students outputs/runs/RUN/checkpoints/final.ckpt data=nih",
    )
    def gap(
        overrides: Overrides = None,
        block_sizes: Annotated[
            list[int] | None, Option(metavar="L ...", help="Block sizes.", show_default="4 8 16, or those of --students")
        ] = None,
        students: Annotated[list[Path] | None, Option(metavar="CHECKPOINT ...", help="Students, not the newest ones.")] = None,
        studies: Annotated[int, Option(min=1, help="Held-out studies.")] = 304,
        out: Annotated[Path, Option(help="Folder to write.")] = Path("outputs/mean_field_gap"),
    ) -> None:
        """Measure the mean-field gap by block size.

        The gap is what one step per block loses against the teacher's chain. For every block size
        it measures the newest finished student and the teacher that it was distilled from, or the
        newest stage-2 run alone if no student exists. Writes mean_field_gap.json and mean_field_gap.md.
        """
        from echo_pl.distill.gap import measure_all

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        measure_all(block_sizes or [], students or [], studies, out, overrides or [])
