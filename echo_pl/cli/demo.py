"""`echo-pl demo`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from echo_pl.cli.grammar import Overrides, command


def add_commands(app: typer.Typer) -> None:
    """Register the command."""

    @command(
        app,
        "demo",
        "echo-pl demo                                        # synthetic chest X-rays, block size 8, about a quarter of an hour",
        "echo-pl demo --full block_size=4                    # longer training, 304 held-out studies",
        "echo-pl demo --data nih --source ../nih_64          # real chest X-rays of 64 x 64 pixels",
    )
    def demo(
        overrides: Overrides = None,
        full: Annotated[bool, Option("--full", help="Settings of experiments/demo/full.yaml instead of quick.yaml.")] = False,
        data: Annotated[Literal["synthetic", "nih"], Option(help="Corpus.")] = "synthetic",
        source: Annotated[Path | None, Option(help="With --data nih: folder with images/ and manifest.jsonl.")] = None,
        out: Annotated[Path | None, Option(help="Folder to write (default outputs/demo, demo-full or demo-real).")] = None,
        data_root: Annotated[Path | None, Option(help="Folder of corpora (default <out>/data).")] = None,
        studies: Annotated[int | None, Option(min=1, help="Held-out studies to evaluate.")] = None,
        trajectories: Annotated[int | None, Option(min=1, help="Training studies that the teacher decodes.")] = None,
        evaluate_only: Annotated[
            bool, Option("--evaluate-only", help="Decode and report again with the checkpoints of a finished demo.")
        ] = False,
    ) -> None:
        """Run the whole method in small, from corpus to table.

        Corpus, three stages, two distilled students, a table of all methods. Writes report.md, index.html and summary.json.
        """
        if data == "nih" and (source is None or not (source / "manifest.jsonl").is_file()):
            print(
                f"the demo on real images is skipped: no manifest.jsonl in {source}. It needs a folder with images/ and "
                "manifest.jsonl: give --source FOLDER, or make demo-real REAL_DATA=FOLDER."
            )
            return
        from echo_pl.sweeps.demo import Demo, DemoSettings

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        folder = out or Path("outputs/demo-real" if data == "nih" else "outputs/demo-full" if full else "outputs/demo")
        run = Demo(
            data=data,
            source=source,
            folder=folder,
            data_root=data_root or folder / "data",
            settings=DemoSettings.load("full" if full else "quick", studies=studies, trajectories=trajectories),
            overrides=overrides or [],
            full=full,
        )
        if evaluate_only:
            run.evaluate_again()
        else:
            run.everything()
