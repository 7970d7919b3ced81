"""What training needs on a cluster, by counting: memory of a GPU, operations, traffic and days for stages 1 to 3.

    python -m echo_pl.bench.plan                                   # 7B, 8, 32 and 128 GPUs
    python -m echo_pl.bench.plan --gpus 16 --batch-size 2 --no-checkpointing --noise-copies 4
    python -m echo_pl.bench.plan --data data=synthetic             # lengths of a corpus in the place of --context and --response
    python -m echo_pl.bench.plan --check                           # the count against steps that are carried out here

The model is Qwen2.5-VL-7B unless --width and the others say otherwise. Writes scale.md and scale.json to outputs/scale.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from echo_pl.backbone.factory import TinyBackbone
from echo_pl.backbone.vlm import VLM
from echo_pl.bench.scale import Machine, decoding_memory, memory_per_gpu, parts_of, traffic_per_step
from echo_pl.bench.scale_check import CHECK_COLUMNS, CHECK_LINE, CHECKED, TOLERANCE, check
from echo_pl.bench.step_trace import Stage, StepTokens, trace_step, trace_tower
from echo_pl.bench.token_statistics import TokenStatistics, token_statistics
from echo_pl.config.errors import reported
from echo_pl.io.atomic import write_json, write_text_atomic
from echo_pl.pages.tables import Column, Table, number, text
from echo_pl.structs import SpecialTokens

GB = 1e9
STAGES: tuple[Stage, ...] = ("pretrain", "rad", "dcd")
SEVEN_B = {
    "width": 3584, "layers": 28, "heads": 28, "key_heads": 4, "mlp_width": 18944, "vision_width": 1280, "vision_layers": 32,
    "vision_heads": 16, "vision_mlp_width": 3420, "patch_size": 14,
}  # fmt: skip
"""Qwen2.5-VL-7B's published sizes. Its tower attends in windows but for four layers, which changes no memory."""
_PATCHES_PER_TOKEN = 4
_LOGITS_BYTES = 2 + 4
"""In bfloat16, and as the float32 numbers that a loss is computed of."""


def builder(sizes: dict[str, int], vocabulary: int) -> tuple[Callable[[], VLM], SpecialTokens]:
    """What makes the model, and its last ids as special tokens."""
    special = SpecialTokens(
        pad=vocabulary - 1, eos=vocabulary - 4, mask=vocabulary - 2, image=vocabulary - 3, never_sampled=(vocabulary - 1,)
    )
    factory = TinyBackbone(**sizes, train_attention="split")  # type: ignore[arg-type]
    return lambda: factory.build(special, vocabulary), special


def estimate(
    sizes: dict[str, int],
    vocabulary: int,
    tokens: StepTokens,
    machines: Sequence[Machine],
    studies: dict[str, int],
    *,
    checkpointing: bool,
    stored_features: bool,
    stored_trajectories: bool,
    typical: StepTokens | None = None,
) -> list[dict[str, Any]]:
    """One row per stage and cluster.

    Args:
        sizes: of a :class:`TinyBackbone`, of any size.
        vocabulary: its rows.
        tokens: of one GPU's step, the longest there is: what memory must hold. All of a context are image tokens, but for a few.
        machines: clusters.
        studies: that each stage trains on, repetitions included.
        checkpointing: activations are computed twice.
        stored_features: stages 2 and 3 do not run the tower.
        stored_trajectories: stage 3 needs no teacher.
        typical: of a usual step, which operations and time are counted for; None: as the longest.
    """
    build, special = builder(sizes, vocabulary)
    parts = parts_of(build)
    tower = trace_tower(sizes["vision_width"], sizes["vision_mlp_width"], sizes["vision_heads"], torch.bfloat16)
    patches = _PATCHES_PER_TOKEN * tokens.context * tokens.batch_size
    usual = tokens if typical is None else typical
    usual_patches = _PATCHES_PER_TOKEN * usual.context * usual.batch_size
    rows = []
    for stage in STAGES:
        trace = partial(trace_step, build, special, stage, precision="bf16-true", checkpointing=checkpointing, keep_gradients=False)
        traced = trace(tokens)
        counted = traced if usual == tokens else trace(usual)
        trains_tower = stage == "pretrain"
        tower_passes = (4 if checkpointing else 3) if trains_tower else 0 if stored_features else 1
        if trains_tower:
            tower_bytes = tower.training(patches, sizes["vision_layers"], checkpointing)
        else:
            tower_bytes = 0.0 if stored_features else tower.frozen * patches
        flops = counted.flops + tower_passes * tower.flops * sizes["vision_layers"] * usual_patches
        for machine in machines:
            memory = memory_per_gpu(
                parts, stage, machine.gpus, traced.forward_backward, tower_bytes, teacher=not stored_trajectories
            )
            compute = flops / (machine.flops * machine.utilisation)
            traffic = traffic_per_step(parts, stage, machine.gpus, runs_tower=trains_tower or not stored_features)
            moving = traffic / machine.bandwidth
            steps = studies[stage] / (tokens.batch_size * machine.gpus)
            rows.append(
                {
                    "stage": stage,
                    "gpus": machine.gpus,
                    **{name: value / GB for name, value in asdict(memory).items()},
                    "logits": _LOGITS_BYTES * tokens.supervised(stage) * tokens.batch_size * vocabulary / GB,
                    "memory_gb": memory.peak / GB,
                    "decoding_gb": decoding_memory(parts, stage, machine.gpus, not stored_trajectories) / GB,
                    "tflop_per_step": flops / 1e12,
                    "traffic_gb_per_step": traffic / GB,
                    "compute_seconds": compute,
                    "traffic_seconds": moving,
                    "steps": round(steps),
                    "days_overlapped": steps * max(compute, moving) / 86400,
                    "days_one_after_the_other": steps * (compute + moving) / 86400,
                }
            )
    return rows


def steps_of(statistics: TokenStatistics, given: StepTokens) -> tuple[StepTokens, StepTokens]:
    """The longest step of a corpus, and a usual one; the rest as given."""

    def step(context: float, response: float) -> StepTokens:
        blocks = math.ceil(response / given.block_size)
        return replace(given, context=math.ceil(context), response=blocks * given.block_size)

    longest = step(statistics.context_longest, statistics.response_longest)
    return longest, step(statistics.context_mean, statistics.response_mean)


COLUMNS = (
    Column("stage", text("stage"), left=True),
    Column("GPUs", text("gpus")),
    Column("weights", number("weights", 1)),
    Column("AdamW", number("optimizer", 1)),
    Column("teacher", number("teacher", 1)),
    Column("gathered", number("gathered", 1)),
    Column("activations", number("activations", 1)),
    Column("of these logits", number("logits", 1)),
    Column("tower", number("vision", 1)),
    Column("reduction", number("reduction", 1)),
    Column("AdamW's step", number("step", 1)),
    Column("GB at most", lambda row: f"**{row['memory_gb']:.1f}**"),
    Column("decoding", number("decoding_gb", 1)),
    Column("TFLOP/step", number("tflop_per_step", 0)),
    Column("GB moved/step", number("traffic_gb_per_step", 0)),
    Column("s compute", number("compute_seconds", 2)),
    Column("s traffic", number("traffic_seconds", 2)),
    Column("steps", text("steps")),
    Column("days", lambda row: f"{row['days_overlapped']:.2g}"),
    Column("days, no overlap", lambda row: f"{row['days_one_after_the_other']:.2g}"),
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 32, 128], help="clusters (default 8 32 128)")
    parser.add_argument("--per-node", type=int, default=8, help="GPUs of a node (default 8)")
    parser.add_argument("--flops", type=float, default=989e12, help="of a GPU in bfloat16 (default 989e12, H100 SXM)")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of them that is reached, assumed (default 0.4)")
    parser.add_argument("--network", type=float, default=50e9, help="bytes/s between nodes for each GPU (default 50e9)")
    parser.add_argument("--node-network", type=float, default=450e9, help="bytes/s inside a node (default 450e9)")
    parser.add_argument("--batch-size", type=int, default=4, help="studies of a GPU and step (default 4)")
    parser.add_argument("--context", type=int, help="context tokens (default 2870)")
    parser.add_argument("--response", type=int, help="response tokens, whole blocks (default 160)")
    parser.add_argument("--data", nargs="+", metavar="KEY=VALUE",
                        help="take contexts and responses from a corpus, as echo-pl would read it: data=synthetic data_root=... "
                             "(memory for its longest, time for its mean)")  # fmt: skip
    parser.add_argument("--block-size", type=int, default=8, help="L (default 8)")
    parser.add_argument("--noise-copies", type=int, default=1, help="K of stage 2 (default 1)")
    parser.add_argument("--studies", type=int, nargs=3, default=[500_000, 10_000, 10_000], metavar=("S1", "S2", "S3"),
                        help="studies that each stage trains on (default 500000 10000 10000)")  # fmt: skip
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--stored-features", action="store_true", help="stages 2 and 3 from stored vision features")
    parser.add_argument("--stored-trajectories", action="store_true", help="stage 3 without its teacher in memory")
    parser.add_argument("--vocabulary", type=int, default=152064, help="rows of the head (default 152064)")
    for name, value in SEVEN_B.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"(default {value})")
    parser.add_argument("--check", action="store_true", help="count and measure small steps on this machine instead")
    parser.add_argument("--check-models", choices=tuple(CHECKED), nargs="+", default=["d128", "d512"], help="(default d128 d512)")
    parser.add_argument("--check-contexts", type=int, nargs="+", default=[256, 1024, 2870], help="(default 256 1024 2870)")
    parser.add_argument("--out", type=Path, default=Path("outputs/scale"), help="where to write (default outputs/scale)")
    args = parser.parse_args()
    failed = False
    with reported():
        if args.check:
            rows = check(args.check_models, args.check_contexts, batch_size=2)
            table, name, facts = Table.from_records(CHECK_COLUMNS, rows).markdown() + "\n", "check", {}
            worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
            table += f"\nFarthest apart: {CHECK_LINE.format(**worst)}.\n"
            failed = abs(worst["ratio"] - 1) > TOLERANCE
        else:
            tokens = StepTokens(
                batch_size=args.batch_size, context=args.context or 2870, response=args.response or 160,
                block_size=args.block_size, noise_copies=args.noise_copies,
            )  # fmt: skip
            typical, statistics = tokens, None
            if args.data is not None:
                if args.context is not None or args.response is not None:
                    raise ValueError("--data says how long contexts and responses are: give it, or --context and --response")
                statistics = token_statistics(args.data)
                print(statistics.sentence)
                tokens, typical = steps_of(statistics, tokens)
            machines = [
                Machine(gpus=gpus, per_node=args.per_node, flops=args.flops, utilisation=args.utilisation,
                        node_bandwidth=args.node_network, network_bandwidth=args.network)
                for gpus in args.gpus
            ]  # fmt: skip
            sizes = {name: getattr(args, name) for name in SEVEN_B}
            rows = estimate(
                sizes, args.vocabulary, tokens, machines, dict(zip(STAGES, args.studies, strict=True)),
                checkpointing=not args.no_checkpointing, stored_features=args.stored_features,
                stored_trajectories=args.stored_trajectories, typical=typical,
            )  # fmt: skip
            facts = {"tokens": asdict(tokens), "typical_tokens": asdict(typical), "sizes": sizes}
            facts |= {} if statistics is None else {"statistics": asdict(statistics)}
            table, name = Table.from_records(COLUMNS, rows).markdown() + "\n", "scale"
        print("\n" + table)
        write_json(args.out / f"{name}.json", {**facts, "rows": rows})
        write_text_atomic(args.out / f"{name}.md", table)
    if failed:
        print(f"counted and measured are more than {TOLERANCE:.0%} apart", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
