"""Cost of a training step by layout, attention and noisy copies: timed, tabulated and logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING, DictConfig, OmegaConf

from echo_pl.bench import machine
from echo_pl.bench.benchmark import load_benchmark, log_benchmark, say
from echo_pl.bench.models import BenchModel
from echo_pl.bench.rad import TrainingGrid, arithmetic, time_training
from echo_pl.bench.rad_table import ARITHMETIC_LEGEND, LEGEND, arithmetic_table, training_table
from echo_pl.config.compose import EXPERIMENTS
from echo_pl.io.atomic import write_json, write_text_atomic

CONFIG = EXPERIMENTS / "bench" / "rad.yaml"
_LOGGED = ("seconds", "supervised_tokens_per_second", "peak_memory_mb", "speedup_over_full_duplication")


@dataclass
class _Schema:
    models: list[str] = MISSING
    contexts: list[int] = MISSING
    response: int = MISSING
    block_size: int = MISSING
    batch_size: int = MISSING
    copies: list[int] = MISSING
    repetitions: int = MISSING
    precision: str = MISSING
    device: str = MISSING
    threads: int | None = MISSING
    out: str = MISSING
    mlflow: str | None = MISSING
    experiment: str = MISSING
    sizes: dict[str, BenchModel] = field(default_factory=dict)


def run_bench(config: DictConfig) -> dict[str, Any]:
    """Time everything, and write ``rad.json`` after every context, so that an interrupted run leaves what it has."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = torch.device(config.device)
    options = ("response", "block_size", "batch_size", "repetitions", "precision")
    grid = TrainingGrid(contexts=tuple(config.contexts), copies=tuple(config.copies), **{name: config[name] for name in options})
    record: dict[str, Any] = {
        "machine": machine.describe([], device),
        "config": OmegaConf.to_container(config),
        "rows": [],
        "arithmetic": [],
    }
    out = Path(config.out)
    for name in map(str, config.models):
        model: BenchModel = OmegaConf.to_object(config.sizes[name])  # type: ignore[assignment]
        for context in grid.contexts:
            record["arithmetic"].append({"model": name, "context": context, **arithmetic(context, grid.response, model.shape)})
        for rows in time_training(name, model, grid, device, say):
            record["rows"] += rows
            print(training_table(rows).text(), flush=True)
            write_json(out / "rad.json", record)
    print(f"\n{ARITHMETIC_LEGEND}\n\n{arithmetic_table(record['arithmetic']).text()}", flush=True)
    return record


def write_report(record: dict[str, Any], out: Path) -> Path:
    """The tables beside ``rad.json``."""
    facts, config = record["machine"], record["config"]
    return write_text_atomic(
        out / "rad.md",
        "# Cost of a training step\n\n"
        f"{facts['processor']}, {facts['threads']} threads of {facts['cores']} cores, device {facts['device']}, "
        f"torch {facts['packages']['torch']}, precision {config['precision']}; batches of {config['batch_size']} studies, "
        f"responses of {config['response']} tokens, block size {config['block_size']}.\n\n{LEGEND}\n\n"
        f"{training_table(record['rows']).markdown()}\n\n"
        f"## By arithmetic\n\n{ARITHMETIC_LEGEND}\n\n{arithmetic_table(record['arithmetic']).markdown()}\n",
    )


def metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Every figure under ``<model>/<variant>-context<P>/<figure>``."""
    return {
        f"{row['model']}/{row['variant']}-context{row['context']}/{figure}": float(row[figure])
        for row in rows
        for figure in _LOGGED
        if row[figure] is not None
    }


def bench_train(overrides: Sequence[str]) -> list[Path]:
    """Time training steps as the benchmark's YAML with overrides asks for; return the files written."""
    config = load_benchmark(_Schema, CONFIG, overrides)
    record = run_bench(config)
    out = Path(config.out)
    files = [out / "rad.json", write_report(record, out)]
    if config.mlflow is not None:
        log_benchmark(config, "rad", record["machine"], metrics(record["rows"]), files)
    return files
