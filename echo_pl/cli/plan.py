"""`echo-pl plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from echo_pl.cli.grammar import Overrides, command


def add_commands(app: typer.Typer) -> None:
    """Register the command."""

    @command(
        app,
        "plan",
        "echo-pl plan --gpus 8 32 128",
        "echo-pl plan --gpus 16 --batch-size 2 --no-checkpointing --noise-copies 4",
        "echo-pl plan data=synthetic                  # lengths of a corpus instead of --context and --response",
        "echo-pl plan --check --check-contexts 1024   # the count against steps that run here (10 minutes)",
    )
    def plan(
        overrides: Overrides = None,
        gpus: Annotated[list[int] | None, Option(metavar="N ...", help="GPUs of each cluster.", show_default="8 32 128")] = None,
        per_node: Annotated[int, Option(help="GPUs of a node.")] = 8,
        flops: Annotated[float, Option(help="Operations per second of a GPU in bfloat16 (default: H100 SXM).")] = 989e12,
        utilisation: Annotated[float, Option(help="Share of --flops that is reached; an assumption.")] = 0.4,
        network: Annotated[float, Option(help="Bytes per second between nodes for each GPU.")] = 50e9,
        node_network: Annotated[float, Option(help="Bytes per second inside a node.")] = 450e9,
        batch_size: Annotated[int, Option(help="Studies of a GPU and step.")] = 4,
        context: Annotated[int | None, Option(help="Context tokens.", show_default="2870")] = None,
        response: Annotated[int | None, Option(help="Response tokens, whole blocks.", show_default="160")] = None,
        block_size: Annotated[int, Option(help="Block size.")] = 8,
        noise_copies: Annotated[int, Option(help="Noisy copies per context of stage 2.")] = 1,
        studies: Annotated[
            list[int] | None,
            Option(metavar="S1 S2 S3", help="Studies that each stage trains on.", show_default="500000 10000 10000"),
        ] = None,
        no_checkpointing: Annotated[bool, Option("--no-checkpointing", help="Keep all activations.")] = False,
        stored_features: Annotated[bool, Option("--stored-features", help="Stages 2 and 3 from stored vision features.")] = False,
        stored_trajectories: Annotated[
            bool, Option("--stored-trajectories", help="Stage 3 without its teacher in memory.")
        ] = False,
        vocabulary: Annotated[int, Option(help="Rows of the head.")] = 152064,
        width: Annotated[int, Option(help="Width of the language model.")] = 3584,
        layers: Annotated[int, Option(help="Layers of the language model.")] = 28,
        heads: Annotated[int, Option(help="Query heads of the language model.")] = 28,
        key_heads: Annotated[int, Option(help="Key heads of the language model.")] = 4,
        mlp_width: Annotated[int, Option(help="Width inside the feed-forward layers of the language model.")] = 18944,
        vision_width: Annotated[int, Option(help="Width of the vision tower.")] = 1280,
        vision_layers: Annotated[int, Option(help="Layers of the vision tower.")] = 32,
        vision_heads: Annotated[int, Option(help="Heads of the vision tower.")] = 16,
        vision_mlp_width: Annotated[int, Option(help="Width inside the feed-forward layers of the vision tower.")] = 3420,
        patch_size: Annotated[int, Option(help="Side of a patch in pixels.")] = 14,
        check: Annotated[bool, Option("--check", help="Count and measure small steps on this machine.")] = False,
        check_models: Annotated[list[str] | None, Option(metavar="NAME ...", help="Models.", show_default="d128 d512")] = None,
        check_contexts: Annotated[list[int] | None, Option(metavar="N ...", help="Contexts.", show_default="256 1024 2870")] = None,
        out: Annotated[Path, Option(help="Folder to write.")] = Path("outputs/scale"),
    ) -> None:
        """Calculate memory and days of the stages on a cluster.

        Memory of a GPU, operations, traffic and days of stages 1 to 3, for Qwen2.5-VL-7B by
        default. With key=value, lengths are read from a corpus: memory for its longest, time for
        its mean. Writes scale.md and scale.json.
        """
        stages = ("pretrain", "rad", "dcd")
        numbers = studies or [500_000, 10_000, 10_000]
        if len(numbers) != len(stages):
            raise typer.BadParameter(f"--studies takes three numbers, one for each stage, got {len(numbers)}")
        if overrides and (context is not None or response is not None):
            raise typer.BadParameter("key=value reads lengths from a corpus: give it, or --context and --response")
        from echo_pl.bench.plan import check_count, write_plan
        from echo_pl.bench.scale import Machine
        from echo_pl.bench.step_trace import StepTokens

        if check:
            if not check_count(check_models or ["d128", "d512"], check_contexts or [256, 1024, 2870], out):
                raise typer.Exit(1)
            return
        sizes = {
            "width": width, "layers": layers, "heads": heads, "key_heads": key_heads, "mlp_width": mlp_width,
            "vision_width": vision_width, "vision_layers": vision_layers, "vision_heads": vision_heads,
            "vision_mlp_width": vision_mlp_width, "patch_size": patch_size,
        }  # fmt: skip
        machines = [
            Machine(gpus=number, per_node=per_node, flops=flops, utilisation=utilisation, node_bandwidth=node_network,
                    network_bandwidth=network)
            for number in gpus or [8, 32, 128]
        ]  # fmt: skip
        tokens = StepTokens(
            batch_size=batch_size, context=context or 2870, response=response or 160, block_size=block_size,
            noise_copies=noise_copies,
        )  # fmt: skip
        write_plan(
            sizes, vocabulary, tokens, machines, dict(zip(stages, numbers, strict=True)), out, data=overrides or (),
            checkpointing=not no_checkpointing, stored_features=stored_features, stored_trajectories=stored_trajectories,
        )  # fmt: skip
