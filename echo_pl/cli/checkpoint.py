"""`echo-pl checkpoint`: look at a checkpoint, merge a sharded one, convert to and from a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from echo_pl.cli.grammar import Overrides, command, tree

Dtype = Literal["float32", "bfloat16", "float16"]
Checkpoint = Annotated[Path, Argument(help="File, or folder of a sharded checkpoint.")]


def add_commands(app: typer.Typer) -> None:
    """Register the commands of this file."""
    verbs = tree("Show, merge, export and import checkpoints.")
    app.add_typer(verbs, name="checkpoint")

    @command(
        verbs,
        "show",
        "echo-pl checkpoint show outputs/runs/RUN/checkpoints/final.ckpt",
        "echo-pl checkpoint show outputs/runs/RUN/checkpoints/last.ckpt",
    )
    def show(checkpoint: Checkpoint) -> None:
        """Print the record of a checkpoint, its step and its sizes as JSON."""
        from echo_pl.runs.checkpoint_files import describe

        print(json.dumps(describe(checkpoint), indent=1))

    @command(
        verbs,
        "merge",
        "echo-pl checkpoint merge outputs/runs/RUN/checkpoints/last.ckpt outputs/runs/RUN/checkpoints/merged.ckpt",
        "echo-pl stage=rad trainer=cpu resume=outputs/runs/RUN/checkpoints/merged.ckpt    # then",
    )
    def merge(checkpoint: Checkpoint, out: Annotated[Path, Argument(help="File to make.")]) -> None:
        """Write a sharded checkpoint as one file that any trainer resumes."""
        from echo_pl.runs.checkpoint_files import merge

        merge(checkpoint, out)
        print(f"wrote {out}")

    @command(
        verbs,
        "export",
        "echo-pl checkpoint export outputs/runs/RUN/checkpoints/final.ckpt exported --dtype bfloat16",
        "echo-pl checkpoint export model.ckpt exported backbone=qwen2_5_vl_7b data.tokenizer_path=FOLDER",
    )
    def export(
        checkpoint: Checkpoint,
        out: Annotated[Path, Argument(metavar="FOLDER", help="Folder to make.")],
        overrides: Overrides = None,
        dtype: Annotated[Dtype | None, Option(help="Type of the weights (default: as stored).")] = None,
    ) -> None:
        """Write a Hugging Face folder from a checkpoint.

        It holds weights, configuration, tokenizer, image processor and the record of the checkpoint.
        """
        from echo_pl.runs.checkpoint_files import to_hf

        to_hf(checkpoint, out, dtype, tuple(overrides or ()))
        print(f"wrote {out}")

    @command(
        verbs,
        "import",
        "echo-pl checkpoint import exported imported.ckpt",
        "echo-pl checkpoint import FOREIGN imported.ckpt --stage dcd --block-size 8 --grid absolute",
    )
    def import_(
        folder: Annotated[Path, Argument(help="Hugging Face folder of a Qwen2.5-VL.")],
        out: Annotated[Path, Argument(metavar="CHECKPOINT", help="File to make.")],
        dtype: Annotated[Dtype, Option(help="Type of the weights.")] = "float32",
        stage: Annotated[
            Literal["warmup", "pretrain", "rad", "dcd"] | None, Option(help="Stage of the model (default: the folder's record).")
        ] = None,
        block_size: Annotated[int | None, Option(help="Block size of a model of stage rad or dcd.")] = None,
        grid: Annotated[Literal["response", "absolute"] | None, Option(help="Block grid (published models: absolute).")] = None,
        context_attention: Annotated[
            Literal["causal", "block_causal", "full"] | None, Option(help="Attention of the context (default causal).")
        ] = None,
        backbone: Annotated[str | None, Option(help="Class of the backbone's factory (default PretrainedBackbone).")] = None,
    ) -> None:
        """Write a checkpoint from a Hugging Face folder.

        A run can start from it (start=), validate it or decode with it.
        """
        from echo_pl.runs.checkpoint_files import from_hf

        from_hf(
            folder, out, dtype, stage=stage, block_size=block_size, grid=grid, context_attention=context_attention,
            backbone=backbone,
        )  # fmt: skip
        print(f"wrote {out}")
