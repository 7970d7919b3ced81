"""`echo-pl bench train`: cost of a training step: autoregressive, full duplication as in earlier work, and RAD in all its forms.

All variants of a model and context are timed in turns. The language model is timed by itself, on text; the two rows with a vision
tower show what stored features save.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING

from echo_pl.bench.benchmark import (
    Benchmark,
    Record,
    load_benchmark,
    machine_sentence,
    report_progress,
    row_metrics,
    run_benchmark,
)
from echo_pl.bench.models import BenchModel
from echo_pl.bench.roofline import ModelShape
from echo_pl.bench.training_step import TrainingStep, memory_of, prepare_step
from echo_pl.io.clock import now
from echo_pl.pages.tables import Column, Table, number, text

Row = dict[str, Any]
"""One variant of one model at one context, as in ``outputs/bench/rad.json``."""
_LOGGED = ("seconds", "supervised_tokens_per_second", "peak_memory_mb", "speedup_over_full_duplication")
_REFERENCE = "full_duplication"
_COLUMNS = (
    Column("model", text("model"), left=True),
    Column("context", text("context")),
    Column("variant", text("variant"), left=True),
    Column("tokens", text("tokens")),
    Column("ms/step", number("seconds", 0, scale=1e3)),
    Column("spread", number("seconds_spread", 0, scale=1e3)),
    Column("supervised", text("supervised_tokens")),
    Column("supervised/s", number("supervised_tokens_per_second", 0)),
    Column("x full dup., step", number("speedup_over_full_duplication", 2)),
    Column("x full dup., supervised/s", number("supervised_speedup_over_full_duplication", 2)),
    Column("peak MB", number("peak_memory_mb", 0)),
    Column("peak kB/supervised", number("peak_memory_kb_per_supervised_token", 0)),
)
_LEGEND = (
    "A step is forward, backward, clipping and AdamW of one batch, the language model on text alone; rad_pixels has a frozen "
    "vision tower in every step, rad_stored_features has its stored output. tokens: of one study's sequence. supervised: positions "
    "with a loss, of the whole batch. x full dup.: over duplicating the context with the response under a dense mask. peak MB: "
    "weights, gradients, optimizer states and activations of this variant alone, above what the process had before, with "
    "what the C library keeps in gaps; kB/supervised: divided by the positions with a loss."
)
_ARITHMETIC_LEGEND = (
    "What RAD saves over full duplication by counting operations: of attention alone and of the language model as a whole, with "
    "masks counted as dense and as the pairs that they allow; the last column compares a dense mask on the duplicated sequence "
    "with split attention on RAD's. No operation of the head is counted."
)


@dataclass(kw_only=True)
class TrainBenchmark(Benchmark):
    """Grid of what is timed; the comments of ``experiments/bench/rad.yaml`` say what each key means."""

    response: int = MISSING
    block_size: int = MISSING
    batch_size: int = MISSING
    copies: list[int] = MISSING
    precision: str = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.contexts or min(self.contexts) < 1 or self.batch_size < 1:
            raise ValueError("contexts and batch_size must be positive")
        if self.response < 1 or self.response % self.block_size:
            raise ValueError(f"response must be a multiple of block_size, got {self.response} and {self.block_size}")
        if any(k < 2 for k in self.copies):
            raise ValueError(f"copies must be at least 2 (1 is timed anyway), got {list(self.copies)}")
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f"precision must be 32-true or bf16-mixed, got {self.precision!r}")

    def variants(self, context: int) -> dict[str, TrainingStep]:
        """Every variant by name; the others are compared with ``full_duplication``."""

        def step(**options: Any) -> TrainingStep:
            return TrainingStep(
                context=context, response=self.response, batch_size=self.batch_size, block_size=self.block_size,
                precision=self.precision, **options,  # type: ignore[arg-type]
            )  # fmt: skip

        return {
            "ar": step(layout="autoregressive"),
            _REFERENCE: step(layout="full_duplication", attention="sdpa"),
            "rad_dense": step(layout="rad", attention="sdpa"),
            "rad_split": step(layout="rad"),
            **{f"rad_split_k{k}": step(layout="rad", noise_copies=k) for k in self.copies},
            "rad_pixels": step(layout="rad", vision="pixels"),
            "rad_stored_features": step(layout="rad", vision="stored"),
        }


@dataclass(kw_only=True)
class _Timed:
    step: TrainingStep
    run: Callable[[], int]
    """Carries out the step; returns the number of supervised positions."""
    seconds: list[float] = field(default_factory=list)
    supervised: int = 0

    def repeat(self, device: torch.device) -> None:
        started = now(device)
        self.supervised = self.run()
        self.seconds.append(now(device) - started)


def time_training(name: str, model: BenchModel, config: TrainBenchmark, device: torch.device) -> Iterator[list[Row]]:
    """Time all variants at every context; yield the rows of one context at a time."""
    for context in config.contexts:
        report_progress(f"{name}, context {context}")
        variants = config.variants(context)
        memory = {variant: memory_of(step, model, device) for variant, step in variants.items()}
        timed = {variant: _Timed(step=step, run=prepare_step(step, model, device)) for variant, step in variants.items()}
        for one in timed.values():
            one.run()
        for _ in range(config.repetitions):
            for one in timed.values():
                one.repeat(device)
        yield [
            {"model": name, "variant": variant, **_row(one, timed[_REFERENCE], memory[variant])} for variant, one in timed.items()
        ]


def _row(one: _Timed, reference: _Timed, megabytes: float | None) -> Row:
    step, seconds, reference_seconds = one.step, statistics.median(one.seconds), statistics.median(reference.seconds)
    per_second = one.supervised / seconds
    # Full duplication was timed without a vision tower, so a step with one is not compared with it.
    comparable = step.vision != "pixels"
    return {
        "context": step.context,
        "response": step.response,
        "batch_size": step.batch_size,
        "noise_copies": step.noise_copies if step.layout != "autoregressive" else 0,
        "attention": step.attention,
        "precision": step.precision,
        "tokens": step.tokens,
        "repetitions": len(one.seconds),
        "seconds": seconds,
        "seconds_spread": max(one.seconds) - min(one.seconds),
        "supervised_tokens": one.supervised,
        "supervised_tokens_per_second": per_second,
        "seconds_per_supervised_token": seconds / one.supervised,
        "speedup_over_full_duplication": reference_seconds / seconds if comparable else None,
        "supervised_speedup_over_full_duplication": per_second * reference_seconds / reference.supervised if comparable else None,
        "peak_memory_mb": megabytes,
        "peak_memory_kb_per_supervised_token": None if megabytes is None else 1e3 * megabytes / one.supervised,
    }


def arithmetic(context: int, response: int, shape: ModelShape) -> dict[str, float]:
    """Savings of RAD over full duplication by counting operations: attention and all of it, dense masks and sparse ones.

    See docs/explain/method.md, "Stage 2: Response-Asymmetric Diffusion". A matrix product counts two operations per weight and
    token. Dense attention counts every pair of positions; sparse only the pairs that the rule allows: a causal half of the context,
    the response over the whole context and half of its own.
    """
    P, R = context, response
    linear = 2 * sum(shape.layer_matrices) * shape.layers
    pair = 4 * shape.heads * shape.head_size * shape.layers
    doubled, once = 2 * (P + R), P + 2 * R
    sparse_doubled = P * P + 2 * P * R + R * R  # two causal contexts, two responses over one of them, own blocks and those before
    sparse_once = P * P / 2 + 2 * P * R + R * R
    return {
        "attention_dense": doubled**2 / once**2,
        "attention_sparse": sparse_doubled / sparse_once,
        "total_dense": (linear * doubled + pair * doubled**2) / (linear * once + pair * once**2),
        "total_sparse": (linear * doubled + pair * sparse_doubled) / (linear * once + pair * sparse_once),
        "total_sparse_over_dense_duplication": (linear * doubled + pair * doubled**2) / (linear * once + pair * sparse_once),
    }


def arithmetic_table(rows: Iterable[Row]) -> Table:
    """Table with one line for each model and context."""
    names = ("attention_dense", "attention_sparse", "total_dense", "total_sparse", "total_sparse_over_dense_duplication")
    columns = [Column("model", text("model"), left=True), Column("context", text("context"))]
    return Table.from_records([*columns, *(Column(name.replace("_", " "), number(name, 2)) for name in names)], rows)


def _report(record: Record) -> Mapping[str, bytes]:
    config = record["config"]
    page = (
        f"# Cost of a training step\n\n{machine_sentence(record)}, precision {config['precision']}; batches of "
        f"{config['batch_size']} studies, responses of {config['response']} tokens, block size {config['block_size']}.\n\n{_LEGEND}"
        f"\n\n{Table.from_records(_COLUMNS, record['rows']).markdown()}\n\n## By arithmetic\n\n{_ARITHMETIC_LEGEND}\n\n"
        f"{arithmetic_table(record['arithmetic']).markdown()}\n"
    )
    return {"rad.md": page.encode()}


def bench_train(overrides: Sequence[str]) -> list[Path]:
    """Time training steps under ``experiments/bench/rad.yaml`` with overrides; return the files written."""
    config = load_benchmark(TrainBenchmark, "rad", overrides)

    def measure(record: Record, device: torch.device, save: Callable[[], object]) -> None:
        record["arithmetic"] = [
            {"model": name, "context": context, **arithmetic(context, config.response, config.sizes[name].shape)}
            for name in config.models
            for context in config.contexts
        ]
        for name in config.models:
            for rows in time_training(name, config.sizes[name], config, device):
                record["rows"] += rows
                print(Table.from_records(_COLUMNS, rows).text(), flush=True)
                save()
        print(f"\n{_ARITHMETIC_LEGEND}\n\n{arithmetic_table(record['arithmetic']).text()}", flush=True)

    def row_name(row: Row) -> str:
        return f"{row['model']}/{row['variant']}-context{row['context']}"

    return run_benchmark(config, "rad", measure, _report, lambda record: row_metrics(record["rows"], row_name, _LOGGED))
