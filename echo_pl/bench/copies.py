"""`echo-pl bench copies`: quality of K noisy copies of a response per context at equal training time of stage 2.

The time of a step is measured first, for all K in turns, on decoded images. Each K is then trained for as many steps as fit into
the minutes, with its own complete schedule, and decoded on the same held-out studies, with many forwards per block and with one.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback

from echo_pl.backbone.checkpoint import load_weights
from echo_pl.config.compose import compose_config
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.evaluation.harness import Method, evaluate_methods
from echo_pl.evaluation.rows import Setting
from echo_pl.io.atomic import write_json, write_text_atomic
from echo_pl.pages.tables import Column, Table, number, text
from echo_pl.runs.run import run
from echo_pl.runs.start import read_start
from echo_pl.sampling import DecodeConfig
from echo_pl.sampling.decoder import StageDecoder

_SETTLING = 12
"""Steps before the first timed one, a whole epoch of the timing run, in which images are decoded and allocators grow."""
_TIMED = 24
_TURNS = 3
CLOCK = "echo_pl.bench.copies.StepClock"
COLUMNS = (
    Column("copies", text("copies")),
    Column("seconds per step", number("seconds_per_step", 3)),
    Column("steps", text("steps")),
    Column("training seconds", number("training_seconds", 3)),
    Column("val loss", number("val_loss", 3)),
    Column("finding f1", number("finding_f1", 3)),
    Column("valid sentences", number("valid_sentences", 3)),
    Column("one step finding f1", number("one_step_finding_f1", 3)),
    Column("one step valid sentences", number("one_step_valid_sentences", 3)),
)


class StepClock(Callback):
    """Record of when each training step ended, in seconds since the first began; written to a JSON file at the end."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._began: float | None = None
        self._ends: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Start the clock with the first batch."""
        if self._began is None:
            self._began = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Record the time."""
        assert self._began is not None
        self._ends.append(time.monotonic() - self._began)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Write the times."""
        write_text_atomic(self._path, json.dumps(self._ends))


def train(copies: int, steps: int, name: str, out: Path, overrides: Sequence[str]) -> tuple[Path, list[float], float]:
    """Train stage 2 with K copies; return its checkpoint, the times at which its steps ended, and its validation loss."""
    shutil.rmtree(out / "runs" / name, ignore_errors=True)  # from an earlier comparison
    clock = out / "clocks" / f"{name}.json"
    clock.parent.mkdir(parents=True, exist_ok=True)
    config = compose_config(
        [
            "stage=rad", f"outputs={out}", "mlflow=null", "callbacks=none", *overrides, f"run_name={name}",
            f"stage.module.noise.noise_copies={copies}", f"stage.max_steps={steps}", f"stage.validate_every={steps}",
            f"stage.checkpoint_every={steps}", f"+callbacks.clock={{_target_: {CLOCK}, path: {clock}}}",
        ]
    )  # fmt: skip
    outcome = run(config)
    return outcome.checkpoint, json.loads(clock.read_text()), outcome.metrics["val/loss"]


def seconds_per_step(copies: Sequence[int], out: Path, overrides: Sequence[str]) -> dict[int, float]:
    """Median seconds of a step for each K; short runs take turns, so that other load on the machine affects all of them."""
    batch_size = compose_config(["stage=rad", *overrides]).stage.batch_size
    short = [*overrides, f"data.limit_train={_SETTLING * batch_size}", f"data.cache_samples={_SETTLING * batch_size}"]
    seconds: dict[int, list[float]] = {k: [] for k in copies}
    for _ in range(_TURNS):
        for k in copies:
            _, ends, _ = train(k, _SETTLING + _TIMED, f"timing-k{k}", out, short)
            seconds[k] += [after - before for before, after in zip(ends[_SETTLING - 1 :], ends[_SETTLING:], strict=False)]
    return {k: statistics.median(values) for k, values in seconds.items()}


def decode(checkpoints: dict[int, Path], studies: int, overrides: Sequence[str]) -> dict[int, dict[str, float]]:
    """Scores on the same held-out studies, with as many forwards as the threshold needs and with one per block."""
    config = compose_config(["stage=rad", *overrides])
    data: ReportDataModule = instantiate(config.data, _convert_="all")
    data.setup()
    factory = instantiate(config.backbone.factory, _convert_="all")
    usual: DecodeConfig = instantiate(config.stage.module.decode, _convert_="all")
    decoder = StageDecoder(special=data.special, max_response_tokens=usual.max_response_tokens, decode=usual)
    methods = []
    for copies, path in checkpoints.items():
        vlm = factory.build(data.special, data.vocab_size).eval().requires_grad_(False)
        load_weights(vlm, path, ("rad",))
        for name, steps in (("base", None), ("base_one_step", 1)):
            setting = Setting(method=name, block_size=usual.block_size, kv_cache="fused", batch_size=16)  # type: ignore[arg-type]
            sampler = decoder.multi_step(vlm, denoising_steps=steps, kv_cache="fused")
            methods.append((copies, Method(setting=setting, sampler=sampler)))
    batches = {16: data.held_out_batches("test", 16, studies)}
    evaluated = evaluate_methods([method for _, method in methods], batches, data.detokenize, data.judge, description="decode")
    found: dict[int, dict[str, float]] = {copies: {} for copies in checkpoints}
    for (copies, method), item in zip(methods, evaluated, strict=True):
        prefix = "one_step_" if method.setting.method == "base_one_step" else ""
        found[copies] |= {prefix + name: item.row[name] for name in ("finding_f1", "valid_sentences")}
    return found


def compare(copies: Sequence[int], minutes: float, studies: int, out: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Time, train and decode every K; write and return the content of copies.json.

    Raises:
        FileNotFoundError: there is no stage-1 run to start from.
        ValueError: too little time for a step, or no copies.
    """
    if not copies or min(copies) < 1:
        raise ValueError(f"copies must be positive, got {list(copies)}")
    usual = compose_config(["stage=rad", *overrides])  # its data and start are used, runs go to out
    start = read_start(usual)
    if start is None:
        raise ValueError("the comparison begins with a stage-1 checkpoint: give start=<path>")
    overrides = [*overrides, f"data_root={usual.data_root}", f"start={start.path}"]
    step = seconds_per_step(copies, out, overrides)
    steps = {k: round(60 * minutes / step[k]) for k in copies}
    if min(steps.values()) < 1:
        raise ValueError(f"a step takes up to {max(step.values()):.1f} s: {minutes} minutes are too little")
    trained = {k: train(k, steps[k], f"copies-k{k}", out, overrides) for k in copies}
    scores = decode({k: path for k, (path, _, _) in trained.items()}, studies, overrides)
    rows = [
        {
            "copies": k,
            "seconds_per_step": step[k],
            "steps": steps[k],
            "training_seconds": trained[k][1][-1],
            "val_loss": trained[k][2],
            **scores[k],
        }
        for k in copies
    ]
    record = {
        "minutes": minutes,
        "studies": studies,
        "threads": torch.get_num_threads(),
        "overrides": list(overrides),
        "rows": rows,
    }
    write_json(out / "copies.json", record)
    write_text_atomic(out / "copies.md", Table.from_records(COLUMNS, rows).markdown() + "\n")
    return record
