"""`echo-pl plan --check`: memory of a step as :mod:`echo_pl.bench.plan` counts it, against steps that run here.

Each step runs this file in its own process, which gets every block of memory from the system.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from echo_pl.backbone.factory import TinyBackbone
from echo_pl.backbone.sharding import ShardPolicy, shard
from echo_pl.bench.models import BenchModel
from echo_pl.bench.scale import memory_per_gpu, parts_of
from echo_pl.bench.step_trace import Stage, StepTokens, gradients_kept, trace_step, trace_tower
from echo_pl.bench.training_step import TrainingStep, memory_of
from echo_pl.config.errors import reported
from echo_pl.io.memory import memory_gb, peak_memory_gb, restart_peak_memory, return_free_memory
from echo_pl.pages.tables import Column, number, text
from echo_pl.structs import SpecialTokens

TOLERANCE = 0.15
# Every block of memory straight from the system and back to it: gaps in glibc's heap are not memory of a step.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_MAX_": "1000000"}
_WARM_UP = BenchModel(width=32, layers=1, heads=1, key_heads=1, mlp_width=32, vocabulary=16, dtype="float32")
CHECKED = {
    "d128": BenchModel(width=128, layers=4, heads=2, key_heads=2, mlp_width=512, vocabulary=4096, dtype="float32"),
    "d512": BenchModel(width=512, layers=2, heads=8, key_heads=8, mlp_width=2048, vocabulary=32000, dtype="float32"),
    "d768": BenchModel(width=768, layers=6, heads=12, key_heads=4, mlp_width=2048, vocabulary=32000, dtype="float32"),
}
_LAYOUTS = (
    ("autoregressive", 1, False),
    ("rad", 1, False),
    ("rad", 4, False),
    ("rad", 1, True),
    ("distillation", 1, False),
    ("distillation", 1, True),
)
_STAGE_OF: dict[str, Stage] = {"autoregressive": "pretrain", "rad": "rad", "distillation": "dcd"}
_TOWER = {"vision_width": 256, "vision_layers": 4, "vision_heads": 4, "vision_mlp_width": 768}
_SIDE = 96
"""Patches along an edge of the image that a tower is measured with."""
_RANKS = 2
Layout = Literal["autoregressive", "rad", "distillation", "tower_trained", "tower_frozen"]


@dataclass(frozen=True)
class Case:
    """One step to count and to measure."""

    model: str
    context: int
    precision: Literal["32-true", "bf16-mixed"]
    layout: Layout
    copies: int
    checkpointing: bool
    batch_size: int
    ranks: int = 1
    """2: sharded, layers in bfloat16, sums in float32, as ``trainer=fsdp2_bf16``."""


CHECK_LINE = (
    "{model} context {context} {precision} {layout} K={copies} checkpointing={checkpointing} ranks={ranks}: "
    "{predicted_mb:.0f} MB counted, {measured_mb:.0f} measured"
)
CHECK_COLUMNS = (
    Column("model", text("model"), left=True),
    Column("context", text("context")),
    Column("precision", text("precision"), left=True),
    Column("layout", text("layout"), left=True),
    Column("K", text("copies")),
    Column("checkpointing", text("checkpointing")),
    Column("ranks", text("ranks")),
    Column("counted, MB", number("predicted_mb", 0)),
    Column("measured, MB", number("measured_mb", 0)),
    Column("ratio", number("ratio", 3)),
)


def check(names: Sequence[str], contexts: Sequence[int], batch_size: int) -> list[dict[str, Any]]:
    """Predicted and measured memory of the same steps on this machine, in MB above what the process had before."""
    rows = []
    for case in cases(names, contexts, batch_size):
        measured, predicted = measure_apart(case), predict(case)
        rows.append(asdict(case) | {"predicted_mb": predicted, "measured_mb": measured, "ratio": predicted / measured})
        print(CHECK_LINE.format(**rows[-1]), flush=True)
    return rows


def measure_apart(case: Case) -> float:
    """Peak MB of a step in its own process; with several ranks, of the one that needed most.

    Raises:
        OSError: the step failed.
    """
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(case.ranks), "-m"] if case.ranks > 1 else []
    done = subprocess.run(
        [sys.executable, "-m", *launcher, __spec__.name, json.dumps(asdict(case))],
        env=os.environ | EXACT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise OSError(f"the step of {case} could not be measured: {done.stderr[-1500:]}")
    return max(float(line) for line in done.stdout.split())


def cases(names: Sequence[str], contexts: Sequence[int], batch_size: int) -> Iterator[Case]:
    """Yield all steps that are checked: of the language models, and of one vision tower."""
    for name in names:
        for context in contexts:
            for precision in ("32-true", "bf16-mixed"):
                for layout, copies, checkpointing in _LAYOUTS:
                    yield Case(name, context, precision, layout, copies, checkpointing, batch_size)  # type: ignore[arg-type]
    for name in names:
        if name == "d128":
            continue  # 60 MB, of which what two processes need to talk to each other would be a sixth
        for checkpointing in (False, True):
            yield Case(name, max(contexts), "32-true", "rad", 1, checkpointing, batch_size, _RANKS)
    for layout, checkpointing in (("tower_frozen", False), ("tower_trained", False), ("tower_trained", True)):
        yield Case("tower", _SIDE**2 // 4, "32-true", layout, 0, checkpointing, 1)  # type: ignore[arg-type]


def predict(case: Case) -> float:
    """Counted MB of a step of one process: weights, and the most that is alive beside them, in backward or in AdamW.

    For a tower, the weights are left out.
    """
    if case.model == "tower":
        traced = trace_tower(_TOWER["vision_width"], _TOWER["vision_mlp_width"], _TOWER["vision_heads"], torch.float32)
        patches = 4 * case.context
        if case.layout == "tower_frozen":
            return patches * traced.frozen / 1e6
        return traced.training(patches, _TOWER["vision_layers"], case.checkpointing) / 1e6
    model = CHECKED[case.model]
    tokens = StepTokens(batch_size=case.batch_size, context=case.context, response=160, noise_copies=case.copies)
    step = trace_step(
        lambda: model.trainable("split"),
        model.special,
        _STAGE_OF[case.layout],
        tokens,
        precision=case.precision if case.ranks == 1 else "bf16-true",
        checkpointing=case.checkpointing,
        keep_gradients=case.ranks == 1,
    )
    parts = parts_of(lambda: model.trainable("split"))
    if case.ranks > 1:
        return memory_per_gpu(parts, _STAGE_OF[case.layout], case.ranks, step.forward_backward, 0.0).peak / 1e6
    return (4 * parts.total + max(step.forward_backward + 8 * parts.language, step.optimizer)) / 1e6


def measure(case: Case) -> float:
    """Measured MB of the same step.

    Raises:
        ValueError: the system does not report memory.
    """
    found = _measure_tower(case) if case.model == "tower" else _measure_step(case)
    if found is None:
        raise ValueError("this system does not report the peak memory of a process: --check needs Linux")
    return found


def _measure_step(case: Case) -> float | None:
    step = TrainingStep(
        layout=case.layout, context=case.context, response=160, batch_size=case.batch_size, block_size=8,  # type: ignore[arg-type]
        precision=case.precision, noise_copies=case.copies, checkpointing=case.checkpointing,
    )  # fmt: skip
    device, place = torch.device("cpu"), None
    if case.ranks > 1:
        mesh = init_device_mesh("cpu", (case.ranks,))
        place = partial(shard, mesh=mesh, policy=ShardPolicy(param_dtype="bfloat16", reduce_dtype="float32"))
    memory_of(replace(step, context=16), _WARM_UP, device, place)  # libraries load and set themselves up in the first step
    return memory_of(step, CHECKED[case.model], device, place)


def _measure_tower(case: Case) -> float | None:
    device = torch.device("cpu")
    special = SpecialTokens(pad=13, eos=12, mask=14, image=15, never_sampled=(13, 14, 15))
    factory = TinyBackbone(width=128, layers=1, gradient_checkpointing=case.checkpointing, **_TOWER)  # type: ignore[arg-type]
    visual = factory.build(special, 16).network.model.visual.train()
    peak = None
    for side in (4, round(2 * case.context**0.5)):  # the first sets up what a process needs once
        pixels, grid = torch.zeros(side * side, 3 * 2 * factory.patch_size**2), torch.tensor([[1, side, side]])
        return_free_memory()
        before = memory_gb(device)
        restarted = restart_peak_memory(device)
        _run_tower(visual, pixels, grid, case.layout == "tower_trained")
        peak = 1e3 * (peak_memory_gb(device) - before) if restarted and before is not None else None
    return peak


def _run_tower(visual: nn.Module, pixels: torch.Tensor, grid: torch.Tensor, trained: bool) -> None:
    with gradients_kept(list(visual.parameters()), keep=False), torch.set_grad_enabled(trained):
        out = visual(pixels, grid_thw=grid).pooler_output
        if trained:
            out.sum().backward()


def main() -> None:
    """One case, as JSON; prints its MB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", help="a Case as JSON; `echo-pl plan --check` gives it")
    with reported():
        found = measure(Case(**json.loads(parser.parse_args().case)))
        print(f"{found}\n", end="", flush=True)  # in one piece: another rank prints too
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
