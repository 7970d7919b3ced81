"""`echo-pl plan`: memory of a GPU, operations, traffic and days of stages 1 to 3 on a cluster, by counting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from tqdm.auto import tqdm

from echo_pl.backbone.factory import TinyBackbone
from echo_pl.backbone.vlm import VLM
from echo_pl.bench.scale import Machine, decoding_memory, memory_per_gpu, parts_of, traffic_per_step
from echo_pl.bench.scale_check import CHECK_COLUMNS, CHECK_LINE, CHECKED, TOLERANCE, check
from echo_pl.bench.step_trace import Stage, StepTokens, trace_step, trace_tower
from echo_pl.config.compose import compose_config
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.io.atomic import write_json, write_text_atomic
from echo_pl.pages.tables import Column, Table, number, text
from echo_pl.structs import SpecialTokens

GB = 1e9
STAGES: tuple[Stage, ...] = ("pretrain", "rad", "dcd")
SEVEN_B = {
    "width": 3584, "layers": 28, "heads": 28, "key_heads": 4, "mlp_width": 18944, "vision_width": 1280, "vision_layers": 32,
    "vision_heads": 16, "vision_mlp_width": 3420, "patch_size": 14,
}  # fmt: skip
"""Qwen2.5-VL-7B's published sizes. Its tower attends in windows except in four layers, which changes no memory."""
_PATCHES_PER_TOKEN = 4
_STUDIES_PER_BATCH = 32
_LOGITS_BYTES = 2 + 4
"""In bfloat16, and as the float32 numbers of the loss."""


def builder(sizes: dict[str, int], vocabulary: int) -> tuple[Callable[[], VLM], SpecialTokens]:
    """Function that builds the model, and its last ids as special tokens."""
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
        sizes: sizes of a :class:`TinyBackbone`.
        vocabulary: rows of the head.
        tokens: lengths of one GPU's longest step, for memory; nearly all context tokens are taken to be image tokens.
        machines: clusters.
        studies: number of studies that each stage trains on, repetitions included.
        checkpointing: activations are computed twice.
        stored_features: stages 2 and 3 do not run the tower.
        stored_trajectories: stage 3 holds no teacher.
        typical: lengths of a usual step, for operations and time; None: those of the longest.
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


@dataclass(frozen=True, kw_only=True)
class TokenStatistics:
    """Lengths of a corpus's training studies in tokens; a response counts its end."""

    studies: int
    context_mean: float
    context_longest: int
    response_mean: float
    response_longest: int


def token_statistics(overrides: Sequence[str]) -> TokenStatistics:
    """Read every training study of a configuration, images too, as their sizes give their numbers of tokens.

    Raises:
        FileNotFoundError: the corpus does not exist.
        ValueError: an unknown key, or damaged data.
    """
    data: ReportDataModule = instantiate(compose_config(["stage=rad", *overrides]).data, _convert_="all")
    data.setup()
    batches = data.train_batches_once(_STUDIES_PER_BATCH)
    read = [(b.context_lengths_B, b.response_lengths_B) for b in tqdm(batches, total=len(batches), desc="lengths", unit="batch")]
    contexts, responses = (torch.cat(lengths).double() for lengths in zip(*read, strict=True))
    return TokenStatistics(
        studies=len(contexts),
        context_mean=float(contexts.mean()),
        context_longest=int(contexts.max()),
        response_mean=float(responses.mean()),
        response_longest=int(responses.max()),
    )


def steps_of(statistics: TokenStatistics, given: StepTokens) -> tuple[StepTokens, StepTokens]:
    """Longest and mean step of a corpus; batch size and copies as given."""

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


def check_count(models: Sequence[str], contexts: Sequence[int], out: Path) -> bool:
    """Count and measure small steps on this machine, write check.json and check.md; return whether they agree."""
    if unknown := sorted(set(models) - set(CHECKED)):
        raise ValueError(f"--check-models must be among {sorted(CHECKED)}, got {unknown[0]!r}")
    rows = check(models, contexts, batch_size=2)
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    text = Table.from_records(CHECK_COLUMNS, rows).markdown() + f"\n\nFarthest apart: {CHECK_LINE.format(**worst)}.\n"
    _write(out, "check", {"rows": rows}, text)
    return bool(abs(worst["ratio"] - 1) <= TOLERANCE)


def write_plan(
    sizes: dict[str, int],
    vocabulary: int,
    tokens: StepTokens,
    machines: Sequence[Machine],
    studies: dict[str, int],
    out: Path,
    *,
    data: Sequence[str] = (),
    **choices: bool,
) -> None:
    """Estimate, print, and write scale.json and scale.md.

    Arguments are those of :func:`estimate`; the lengths of the corpus of the configuration ``data`` replace those of ``tokens``.
    """
    typical, facts = tokens, {}
    if data:
        statistics = token_statistics(data)
        print(
            "{studies} studies: contexts of {context_mean:.1f} tokens, at most {context_longest}; "
            "responses of {response_mean:.1f}, at most {response_longest}".format(**asdict(statistics))
        )
        tokens, typical = steps_of(statistics, tokens)
        facts = {"statistics": asdict(statistics)}
    rows = estimate(sizes, vocabulary, tokens, machines, studies, typical=typical, **choices)
    facts |= {"tokens": asdict(tokens), "typical_tokens": asdict(typical), "sizes": sizes}
    _write(out, "scale", {**facts, "rows": rows}, Table.from_records(COLUMNS, rows).markdown() + "\n")


def _write(out: Path, name: str, facts: dict[str, Any], table: str) -> None:
    print("\n" + table)
    write_json(out / f"{name}.json", facts)
    write_text_atomic(out / f"{name}.md", table)
