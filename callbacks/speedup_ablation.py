"""Speed and quality of each decode at the end of a run: AR, base multi-step, base and distilled one step (an observer)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from echo_pl.evaluation.harness import EvaluatedMethod, Method, Sampler, evaluate_methods
from echo_pl.evaluation.plot import png, quality_speed_figure
from echo_pl.evaluation.rows import SCORES, Row, Setting, comparison_table
from echo_pl.io.atomic import write_bytes_atomic, write_text_atomic
from echo_pl.stages.parallel import merged_adapters
from echo_pl.structs import SpecialTokens

from .observing import ReportData, ReportModule, frozen, mlflow_runs, observing, report_data

STAGES = ("rad", "dcd")
"""Stages that decode blocks."""


class Autoregressive(Sampler, Protocol):
    """The AR baseline, which owns its model."""

    vlm: nn.Module


class MakeAutoregressive(Protocol):
    """Makes the AR baseline, if the chain has one."""

    def __call__(self, *, special: SpecialTokens, vocab_size: int) -> Autoregressive | None:
        """Build it for the data's tokenizer."""


class Named(Protocol):
    """Part of a distillation objective that rows show."""

    @property
    def name(self) -> str:
        """Its name in rows."""


class DiffusionModule(ReportModule, Protocol):
    """A stage with a block-diffusion model."""

    teacher: Any
    """Only ``dcd``."""
    objective: Named
    """Only ``dcd``."""
    block_size: int

    def make_sampler(self, vlm: Any, **changes: Any) -> Sampler:
        """Make a sampler of the stage with some fields of its decode configuration changed."""

    def make_student_sampler(self, **changes: Any) -> Sampler:
        """Make a sampler of the student; only ``dcd``."""


class SpeedupAblation(Callback):
    """Runs every method over block and batch sizes on the same held-out studies, alternating.

    Writes ``speedup/fit.{json,png}`` under the run's folder and, to MLflow, the same as a table, a figure and
    metrics ``speedup/<method>/<score>``. A RAD stage has only the base methods; other stages have none.

    Args:
        block_sizes: block sizes of the decodes; a row notes a model that was trained with another one.
        batch_sizes: studies decoded at once.
        studies: held-out studies per method.
        split: ``val`` or ``test``.
        autoregressive: makes the AR baseline from the stage-1 checkpoint, as weights after RAD are no longer autoregressive.
            Called at the end only, to save memory. None, or a return value of None: no AR row.
        progress: show a progress bar.
    """

    def __init__(
        self,
        *,
        block_sizes: Sequence[int],
        batch_sizes: Sequence[int] = (1,),
        studies: int = 64,
        split: str = "test",
        autoregressive: MakeAutoregressive | None = None,
        progress: bool = True,
    ) -> None:
        if not block_sizes or not batch_sizes or min(*block_sizes, *batch_sizes, studies) < 1:
            raise ValueError(
                "block_sizes, batch_sizes and studies must be positive and not empty, "
                f"got {list(block_sizes)}, {list(batch_sizes)} and {studies}"
            )
        self.block_sizes = tuple(block_sizes)
        self.batch_sizes = tuple(batch_sizes)
        self.studies = studies
        self.split = split
        self.autoregressive = autoregressive
        self.progress = progress

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise ValueError before the training for a block size that the stage cannot decode with."""
        module = cast(DiffusionModule, pl_module)
        if module.stage_name in STAGES:
            list(self._methods(module, ar=None))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the ablation on the final weights."""
        module = cast(DiffusionModule, pl_module)
        if module.stage_name not in STAGES:
            rank_zero_warn(f"SpeedupAblation has nothing to compare in stage {module.stage_name!r}: it decodes no blocks")
            return
        # Every rank decodes all studies, since a sharded model needs all ranks for its forwards; rank 0 writes.
        # Without autocast: timed is the model as in deployment, in its weights' own type.
        autocast = torch.autocast(pl_module.device.type, enabled=False)
        with observing(trainer, pl_module), frozen(pl_module), autocast, merged_adapters(module.vlm):
            data = report_data(trainer)
            batches = {
                size: [batch.to(pl_module.device) for batch in data.held_out_batches(self.split, size, self.studies)]
                for size in self.batch_sizes
            }
            evaluated = evaluate_methods(
                list(self._methods(module, ar=self._baseline(data, pl_module.device))),
                batches,
                data.detokenize,
                data.judge,
                description="speed-up",
                progress=self.progress and trainer.is_global_zero,
            )
            if trainer.is_global_zero:
                self._write(trainer, evaluated, module.block_size)

    def _baseline(self, data: ReportData, device: torch.device) -> Sampler | None:
        """The AR sampler on the device of the batches."""
        if self.autoregressive is None:
            return None
        sampler = self.autoregressive(special=data.special, vocab_size=data.vocab_size)
        if sampler is None:
            rank_zero_warn("SpeedupAblation has no AR row: this chain has no stage-1 checkpoint to decode with")
            return None
        sampler.vlm.to(device)
        return sampler

    def _methods(self, module: DiffusionModule, ar: Sampler | None) -> Iterator[Method]:
        """The methods that the stage's models allow, AR first."""
        teacher = module.teacher if module.stage_name == "dcd" else module.vlm
        for batch in self.batch_sizes:
            if ar is not None:
                yield Method(setting=Setting(method="ar", batch_size=batch), sampler=ar)
            for size in self.block_sizes:
                # Of the decode rule of a collection only the threshold is kept, as a random order is for collections only.
                common = {"block_size": size, "remasking": "low_confidence_dynamic"}
                several = common | {"denoising_steps": size}
                one = common | {"denoising_steps": 1, "kv_cache": "fused"}
                base = Setting(method="base", block_size=size, kv_cache="vanilla", batch_size=batch)
                yield Method(setting=base, sampler=module.make_sampler(teacher, **several, kv_cache="vanilla"))
                base = replace(base, kv_cache="fused")
                yield Method(setting=base, sampler=module.make_sampler(teacher, **several, kv_cache="fused"))
                base = replace(base, method="base_one_step")
                yield Method(setting=base, sampler=module.make_sampler(teacher, **one))
                if module.stage_name == "dcd":
                    student = replace(base, method="distilled", objective=module.objective.name)
                    yield Method(setting=student, sampler=module.make_student_sampler(**one))

    def _write(self, trainer: Trainer, evaluated: Sequence[EvaluatedMethod], trained: int) -> None:
        rows = [item.row for item in evaluated]
        noted = [row | {"note": _note(row, trained)} for row in rows]
        rank_zero_info(f"\n{comparison_table(rows).text()}\n")
        folder = Path(trainer.default_root_dir) / "speedup"
        figure = quality_speed_figure(rows)
        write_bytes_atomic(folder / "fit.png", png(figure))
        content = {"rows": noted, "signatures": evaluated[0].outcome.signatures}
        write_text_atomic(folder / "fit.json", json.dumps(content, indent=1))
        for client, run_id in mlflow_runs(trainer):
            columns = {name: [row[name] for row in noted] for name in noted[0]}
            client.log_table(run_id, columns, "speedup/fit.json")
            client.log_figure(run_id, figure, "speedup/fit.png")
            for item in evaluated:
                for name in SCORES:
                    if item.row[name] is not None:
                        client.log_metric(run_id, f"speedup/{item.setting.slug}/{name}", item.row[name])


def _note(row: Row, trained: int) -> str:
    return "" if row["method"] == "ar" or row["block_size"] == trained else f"trained with block size {trained}"
