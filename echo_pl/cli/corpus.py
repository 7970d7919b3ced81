"""`echo-pl corpus`: make, prepare, view, check, and store the features of its images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from echo_pl.cli import corpus_prepare
from echo_pl.cli.grammar import Overrides, command, tree


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    verbs = tree("Make, prepare, view and check corpora; store features.")
    app.add_typer(verbs, name="corpus")

    @command(
        verbs,
        "make",
        "echo-pl corpus make",
        "echo-pl corpus make nih --source path/to/nih_64 --out outputs/data/nih",
    )
    def make(
        kind: Annotated[
            Literal["synthetic", "nih"], Argument(help="Drawn images, or NIH ChestX-ray14 images and labels.")
        ] = "synthetic",
        out: Annotated[Path | None, Option(help="Corpus folder to make (default outputs/data/<kind>).")] = None,
        source: Annotated[Path | None, Option(help="For nih: folder with manifest.jsonl and images/.")] = None,
        train: Annotated[int, Option(help="Training studies (synthetic).")] = 6000,
        val: Annotated[int, Option(help="Validation studies (synthetic).")] = 300,
        test: Annotated[int, Option(help="Test studies (synthetic).")] = 2000,
        size: Annotated[int, Option(help="Width and height of the images in pixels (synthetic).")] = 64,
        seed: Annotated[int, Option(help="Seed of the corpus.")] = 0,
        wording: Annotated[Literal["peaked", "even"], Option(help="Shares of the wordings.")] = "peaked",
        vocab_size: Annotated[int, Option(help="Most ids of the tokenizer.")] = 640,
        shard_size: Annotated[int, Option(help="Studies in one shard.")] = 500,
    ) -> None:
        """Make a corpus folder: shards, index and tokenizer.

        A folder that holds this corpus already is kept.
        """
        if (kind == "nih") != (source is not None):
            raise typer.BadParameter("--source FOLDER is for nih, which needs it")
        from echo_pl.data.pipeline.make_corpus import make_nih, make_synthetic, summary

        folder = out or Path("outputs/data") / kind
        if source is None:
            make_synthetic(
                folder, train=train, val=val, test=test, image_size=size, seed=seed, wording=wording, vocab_size=vocab_size,
                shard_size=shard_size,
            )  # fmt: skip
        else:
            make_nih(source, folder, seed=seed, wording=wording, vocab_size=vocab_size, shard_size=shard_size)
        print(summary(folder))

    corpus_prepare.add_commands(verbs)

    @command(
        verbs,
        "view",
        "echo-pl corpus view outputs/data/iu/train-000000.tar --out outputs/look.html --studies 30",
        "echo-pl corpus view outputs/data/iu/train-000000.tar --out outputs/look.html --keys CXR1 CXR7",
    )
    def view(
        shard: Annotated[Path, Argument(help="A .tar file in a corpus folder.")],
        out: Annotated[Path, Option(help="Page to write.")],
        studies: Annotated[int, Option(help="Studies from the start of the shard.")] = 20,
        keys: Annotated[list[str] | None, Option(metavar="ID ...", help="These studies instead of the first.")] = None,
    ) -> None:
        """Show studies of a shard as an HTML page.

        Images, both versions of the report with imputed sentences marked, and labels. The page
        holds patients' images and reports. Only its owner can read it.
        """
        from echo_pl.data.pipeline.page import view_shard

        print(f"{view_shard(shard, out, studies=studies, keys=keys or ())} studies in {out}")

    @command(
        verbs,
        "check",
        "echo-pl corpus check reports.jsonl --out figures.json",
        "echo-pl corpus check reports.jsonl --part held_out --review failed.jsonl",
    )
    def check(
        reports: Annotated[Path, Argument(help="JSONL of raw reports: id, findings, impression.")],
        part: Annotated[
            Literal["all", "held_out", "rest"], Option(help="Reports to check; a third is held out by the hash of its id.")
        ] = "all",
        out: Annotated[Path | None, Option(help="JSON file for the figures.")] = None,
        review: Annotated[Path | None, Option(help="File for the reports that failed, with their text (patient data).")] = None,
    ) -> None:
        """Measure the rule engine on raw reports.

        Completeness, regions, unassigned clauses, labels and speed. mesh_major and mesh_auto, if
        present in a line, are the gold labels of the labeller.
        """
        from echo_pl.reports.normalizer_check import check_file

        print(json.dumps(check_file(reports, part, out, review), indent=1, ensure_ascii=False))

    @command(
        verbs,
        "features",
        "echo-pl corpus features --out outputs/features/synthetic",
        "echo-pl corpus features --out outputs/features/nih --dtype float16 data=nih start=outputs/runs/RUN/checkpoints/final.ckpt",
    )
    def features(
        out: Annotated[Path, Option(help="Folder to make, or to complete after an interruption.")],
        overrides: Overrides = None,
        dtype: Annotated[Literal["bfloat16", "float16", "float32"], Option(help="Type to store.")] = "bfloat16",
        batch_size: Annotated[int, Option(min=1, help="Studies at once.")] = 64,
    ) -> None:
        """Run the frozen vision tower over a corpus once.

        Stages 2 and 3 read the result by data.stored_features=OUT. The tower is that of the newest
        stage-1 run unless start=CHECKPOINT names another one.
        """
        from echo_pl.config.compose import compose_config
        from echo_pl.runs.stored_features import store_features

        index = store_features(compose_config(["stage=rad", *(overrides or [])]), out, dtype, batch_size)
        size = sum(shard.bytes for shards in index.splits.values() for shard in shards)
        print(f"vision features of tower {index.vision_fingerprint}, {size / 1e6:.0f} MB; train with data.stored_features={out}")
