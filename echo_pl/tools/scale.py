"""What training needs on a cluster, by counting: memory of a GPU, operations, traffic and days for stages 1 to 3.

    python -m echo_pl.tools.scale                                   # 7B, 8, 32 and 128 GPUs
    python -m echo_pl.tools.scale --gpus 16 --batch-size 2 --no-checkpointing --noise-copies 4
    python -m echo_pl.tools.scale --check                           # the count against steps that are carried out here

The model is Qwen2.5-VL-7B unless --width and the others say otherwise. Writes scale.md and scale.json to outputs/scale.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from echo_pl.__main__ import reported
from echo_pl.backbone.factory import TinyBackbone
from echo_pl.backbone.vlm import VLM
from echo_pl.bench.models import BenchModel
from echo_pl.bench.rad import TrainingGrid, Variant, memory_of
from echo_pl.bench.scale import Machine, decoding_memory, memory_per_gpu, parts_of, traffic_per_step
from echo_pl.bench.step_trace import Stage, StepTokens, TracedPrecision, trace_step, trace_tower
from echo_pl.evaluation.files import write_text_atomic
from echo_pl.structs import SpecialTokens

GB = 1e9
STAGES: tuple[Stage, ...] = ("pretrain", "rad", "dcd")
SEVEN_B = {
    "width": 3584, "layers": 28, "heads": 28, "key_heads": 4, "mlp_width": 18944, "vision_width": 1280, "vision_layers": 32,
    "vision_heads": 16, "vision_mlp_width": 3420, "patch_size": 14,
}  # fmt: skip
"""Qwen2.5-VL-7B's published sizes. Its tower attends in windows but for four layers, which changes no memory."""
_PATCHES_PER_TOKEN = 4
# Every block of memory straight from the system and back to it: what glibc keeps in gaps is no memory of a step.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_MAX_": "1000000"}
_WARM_UP = BenchModel(width=32, layers=1, heads=1, key_heads=1, mlp_width=32, vocabulary=16, dtype="float32")
_CHECKED = {
    "d128": BenchModel(width=128, layers=4, heads=2, key_heads=2, mlp_width=512, vocabulary=4096, dtype="float32"),
    "d512": BenchModel(width=512, layers=2, heads=8, key_heads=8, mlp_width=2048, vocabulary=32000, dtype="float32"),
    "d768": BenchModel(width=768, layers=6, heads=12, key_heads=4, mlp_width=2048, vocabulary=32000, dtype="float32"),
}


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
) -> list[dict[str, Any]]:
    """One row per stage and cluster.

    Args:
        sizes: of a :class:`TinyBackbone`, of any size.
        vocabulary: its rows.
        tokens: of one GPU's step; all of a context are image tokens, but for a few.
        machines: clusters.
        studies: that each stage trains on, repetitions included.
        checkpointing: activations are computed twice.
        stored_features: stages 2 and 3 do not run the tower.
        stored_trajectories: stage 3 needs no teacher.
    """
    build, special = builder(sizes, vocabulary)
    parts = parts_of(build)
    tower = trace_tower(sizes["vision_width"], sizes["vision_mlp_width"], sizes["vision_heads"], torch.bfloat16)
    patches = _PATCHES_PER_TOKEN * tokens.context * tokens.batch_size
    rows = []
    for stage in STAGES:
        traced = trace_step(build, special, stage, tokens, precision="bf16-true", checkpointing=checkpointing, keep_gradients=False)
        trains_tower = stage == "pretrain"
        tower_passes = (4 if checkpointing else 3) if trains_tower else 0 if stored_features else 1
        if trains_tower:
            tower_bytes = tower.training(patches, sizes["vision_layers"], checkpointing)
        else:
            tower_bytes = 0.0 if stored_features else tower.frozen * patches
        flops = traced.flops + tower_passes * tower.flops * sizes["vision_layers"] * patches
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
                    **{name: value / GB for name, value in memory.items()},
                    "memory_gb": sum(memory.values()) / GB,
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


COLUMNS = (
    ("stage", "stage", "{}"),
    ("gpus", "GPUs", "{}"),
    ("weights", "weights", "{:.1f}"),
    ("gradients", "gradients", "{:.1f}"),
    ("optimizer", "AdamW", "{:.1f}"),
    ("teacher", "teacher", "{:.1f}"),
    ("gathered", "gathered", "{:.1f}"),
    ("activations", "activations", "{:.1f}"),
    ("vision", "tower", "{:.1f}"),
    ("memory_gb", "GB in all", "**{:.1f}**"),
    ("decoding_gb", "decoding", "{:.1f}"),
    ("tflop_per_step", "TFLOP/step", "{:.0f}"),
    ("traffic_gb_per_step", "GB moved/step", "{:.0f}"),
    ("compute_seconds", "s compute", "{:.2f}"),
    ("traffic_seconds", "s traffic", "{:.2f}"),
    ("steps", "steps", "{}"),
    ("days_overlapped", "days", "{:.2g}"),
    ("days_one_after_the_other", "days, no overlap", "{:.2g}"),
)


def markdown(rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str, str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(title for _, title, _ in columns) + " |", "|" + "--:|" * len(columns)]
    lines += ["| " + " | ".join(form.format(row[name]) for name, _, form in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def check(names: Sequence[str], contexts: Sequence[int], batch_size: int) -> list[dict[str, Any]]:
    """Predicted and measured memory of the same steps on this machine, in MB above what the process had.

    Each is measured in a process of its own that gets every block of memory from the system.
    """
    rows = []
    for name in names:
        for context in contexts:
            for precision in ("32-true", "bf16-mixed"):
                for layout, copies, checkpointing in _CASES:
                    case = json.dumps([name, context, precision, layout, copies, checkpointing, batch_size])
                    done = subprocess.run(
                        [sys.executable, "-m", __spec__.name, "--measure", case],
                        env=os.environ | EXACT, capture_output=True, text=True, check=False,
                    )  # fmt: skip
                    if done.returncode:
                        raise OSError(f"the step of {case} could not be measured: {done.stderr[-500:]}")
                    measured = float(done.stdout.splitlines()[-1])
                    predicted = predict(name, context, precision, layout, copies, checkpointing, batch_size)
                    rows.append(
                        {
                            "model": name,
                            "context": context,
                            "precision": precision,
                            "layout": layout,
                            "copies": copies,
                            "checkpointing": checkpointing,
                            "predicted_mb": predicted,
                            "measured_mb": measured,
                            "ratio": predicted / measured,
                        }
                    )
                    print(CHECK_LINE.format(**rows[-1]), flush=True)
    return rows


_CASES = (("autoregressive", 1, False), ("rad", 1, False), ("rad", 4, False), ("rad", 1, True))
TOLERANCE = 0.15
CHECK_LINE = (
    "{model} context {context} {precision} {layout} K={copies} checkpointing={checkpointing}: "
    "{predicted_mb:.0f} MB counted, {measured_mb:.0f} measured"
)
CHECK_COLUMNS = (
    ("model", "model", "{}"),
    ("context", "context", "{}"),
    ("precision", "precision", "{}"),
    ("layout", "layout", "{}"),
    ("copies", "K", "{}"),
    ("checkpointing", "checkpointing", "{}"),
    ("predicted_mb", "counted, MB", "{:.0f}"),
    ("measured_mb", "measured, MB", "{:.0f}"),
    ("ratio", "ratio", "{:.3f}"),
)


def predict(
    name: str, context: int, precision: TracedPrecision, layout: str, copies: int, checkpointing: bool, batch_size: int
) -> float:
    """MB of a step of one process: weights, and the most that is alive beside them, in backward or in AdamW."""
    model = _CHECKED[name]
    tokens = StepTokens(batch_size=batch_size, context=context, response=160, noise_copies=copies)
    stage: Stage = "pretrain" if layout == "autoregressive" else "rad"
    traced = trace_step(
        lambda: model.trainable("split"),
        model.special,
        stage,
        tokens,
        precision=precision,
        checkpointing=checkpointing,
        keep_gradients=True,
    )
    parts = parts_of(lambda: model.trainable("split"))
    return (4 * parts.total + max(traced.forward_backward + 8 * parts.language, traced.optimizer)) / 1e6


def measure(
    name: str, context: int, precision: TracedPrecision, layout: str, copies: int, checkpointing: bool, batch_size: int
) -> float:
    """MB of the same step, carried out.

    Raises:
        ValueError: the system does not tell.
    """
    variant = Variant(name="checked", layout=layout, attention="split", copies=copies, checkpointing=checkpointing)  # type: ignore[arg-type]
    grid = TrainingGrid(
        contexts=(context,), response=160, block_size=8, batch_size=batch_size, copies=(2,), repetitions=1,
        precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    device = torch.device("cpu")
    # What a process loads and sets up in its first step is no memory of a step.
    memory_of(variant, _WARM_UP, 16, replace(grid, contexts=(16,)), device)
    found = memory_of(variant, _CHECKED[name], context, grid, device)
    if found is None:
        raise ValueError("this system does not tell how much memory a process has had: --check needs Linux")
    return found


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
    parser.add_argument("--context", type=int, default=2870, help="context tokens (default 2870)")
    parser.add_argument("--response", type=int, default=160, help="response tokens, whole blocks (default 160)")
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
    parser.add_argument("--check-models", choices=tuple(_CHECKED), nargs="+", default=["d128", "d512"], help="(default d128 d512)")
    parser.add_argument("--check-contexts", type=int, nargs="+", default=[256, 1024, 2870], help="(default 256 1024 2870)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("outputs/scale"), help="where to write (default outputs/scale)")
    args = parser.parse_args()
    failed = False
    with reported():
        if args.measure is not None:
            print(measure(*json.loads(args.measure)))
            return
        if args.check:
            rows = check(args.check_models, args.check_contexts, batch_size=2)
            table, name, facts = markdown(rows, CHECK_COLUMNS), "check", {}
            worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
            table += f"\nFarthest apart: {CHECK_LINE.format(**worst)}.\n"
            failed = abs(worst["ratio"] - 1) > TOLERANCE
        else:
            tokens = StepTokens(
                batch_size=args.batch_size, context=args.context, response=args.response, block_size=args.block_size,
                noise_copies=args.noise_copies,
            )  # fmt: skip
            machines = [
                Machine(gpus=gpus, per_node=args.per_node, flops=args.flops, utilisation=args.utilisation,
                        node_bandwidth=args.node_network, network_bandwidth=args.network)
                for gpus in args.gpus
            ]  # fmt: skip
            sizes = {name: getattr(args, name) for name in SEVEN_B}
            rows = estimate(
                sizes, args.vocabulary, tokens, machines, dict(zip(STAGES, args.studies, strict=True)),
                checkpointing=not args.no_checkpointing, stored_features=args.stored_features,
                stored_trajectories=args.stored_trajectories,
            )  # fmt: skip
            table, name, facts = markdown(rows, COLUMNS), "scale", {"tokens": asdict(tokens), "sizes": sizes}
        print("\n" + table)
        write_text_atomic(args.out / f"{name}.json", json.dumps({**facts, "rows": rows}, indent=1) + "\n")
        write_text_atomic(args.out / f"{name}.md", table)
    if failed:
        print(f"counted and measured are more than {TOLERANCE:.0%} apart", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
