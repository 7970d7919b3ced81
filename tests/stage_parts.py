"""Very small stages on a very small corpus, put together as ``echo_pl.runs.run`` does: for tests of hand-over and training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from echo_pl.backbone.checkpoint import RECORD_KEY, StageRecord, record_dict
from echo_pl.backbone.factory import TinyBackbone
from echo_pl.backbone.vlm import VLM
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.diffusion.noise import NoiseConfig
from echo_pl.diffusion.objectives import DirectConditional
from echo_pl.sampling import DecodeConfig
from echo_pl.sampling.collect import store_identity
from echo_pl.sampling.trajectory_store import CollectionCounts, CollectionPlan
from echo_pl.sampling.trajectory_writer import TrajectoryWriter
from echo_pl.stages.dcd import DCDModule
from echo_pl.stages.optimization import Optimization
from echo_pl.stages.pretrain import NormalizedPretrain
from echo_pl.stages.rad import RADModule
from echo_pl.stages.validation import TextTools
from echo_pl.stages.warmup import VisionWarmup
from echo_pl.structs import SpecialTokens, Trajectory

BLOCK_SIZE = 8
LIMIT = 128
BACKBONE = TinyBackbone(
    width=32, layers=2, heads=2, key_heads=1, mlp_width=48, vision_width=32, vision_layers=1, vision_heads=2,
    vision_mlp_width=32, train_attention="sdpa",
)  # fmt: skip
OPTIMIZATION = Optimization(learning_rate=1e-3, warmup_steps=2)
DECODE = DecodeConfig(block_size=BLOCK_SIZE, max_response_tokens=LIMIT)


def report_data(root: Path, **options: Any) -> ReportDataModule:
    """Three batches of four studies an epoch."""
    return ReportDataModule(
        root=root,
        **{"batch_size": 4, "max_response_tokens": LIMIT, "limit_train": 12, "limit_val": 4, "shuffle_buffer": 8, **options},
    )


def record(stage: str, **changes: Any) -> StageRecord:
    """Record of a checkpoint of a stage."""
    block_size = BLOCK_SIZE if stage in ("rad", "dcd") else None
    return StageRecord(**{"stage": stage, "backbone": "tiny", "block_size": block_size, "chain": "test", **changes})


def parts(stage: str, text: TextTools, start: Path | None) -> dict[str, Any]:
    """Arguments that every stage has."""
    return {
        "backbone": BACKBONE,
        "text": text,
        "optimization": OPTIMIZATION,
        "lineage": record(stage, start=None if start is None else str(start)),
        "start": None if start is None else str(start),
    }


def warmup(text: TextTools, **options: Any) -> VisionWarmup:
    return VisionWarmup(**{**parts("warmup", text, None), **options})


def pretrain(text: TextTools, start: Path | None = None, **options: Any) -> NormalizedPretrain:
    return NormalizedPretrain(**{**parts("pretrain", text, start), "max_response_tokens": LIMIT, **options})


def rad(text: TextTools, start: Path | None = None, **options: Any) -> RADModule:
    own = {"decode": DECODE, "noise": NoiseConfig()}
    return RADModule(**{**parts("rad", text, start), **own, **options})


def dcd(text: TextTools, start: Path | None, **options: Any) -> DCDModule:
    own = {"decode": replace(DECODE, denoising_steps=2), "objective": DirectConditional()}
    return DCDModule(**{**parts("dcd", text, start), **own, **options})


def lively(vlm: VLM, special: SpecialTokens, eos_scale: float = 4.0) -> VLM:
    """Larger weights, so that contexts matter, and reports that sometimes end."""
    with torch.no_grad():
        for name, parameter in vlm.network.named_parameters():
            if "layers" in name and parameter.dim() == 2:
                parameter.mul_(4.0)
        vlm.network.lm_head.weight.mul_(10.0)
        vlm.network.lm_head.weight[special.eos] *= eos_scale
    return vlm


def write_checkpoint(path: Path, vlm: VLM, about: StageRecord) -> Path:
    """A checkpoint as a stage writes it, without a trainer."""
    weights = {f"vlm.{name}": value for name, value in vlm.state_dict().items()}
    torch.save({"state_dict": weights, RECORD_KEY: record_dict(about)}, path)
    return path


class Losses(L.Callback):
    """The training loss of every batch, bit by bit."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))


def write_tokens(folder: Path, reports: list[list[int]], data: str) -> Path:
    """Stored trajectories of these tokens, without distributions."""
    identity = store_identity(DECODE, "a teacher", data, distributions=False)
    writer = TrajectoryWriter(folder, identity, CollectionPlan(studies=len(reports), batches=1, batch_size=len(reports)))
    trajectories = [
        Trajectory(
            key=f"study-{n}",
            block_size=BLOCK_SIZE,
            token_R=torch.tensor(report),
            commit_step_R=torch.ones(len(report), dtype=torch.long),
            confidence_R=torch.ones(len(report)),
        )
        for n, report in enumerate(reports)
    ]
    writer.write(0, trajectories, [], CollectionCounts(kept=len(reports)))
    return writer.finish()[0]


def trainer(folder: Path, steps: int, *callbacks: L.Callback, checkpoints: int | None = None, **options: Any) -> L.Trainer:
    """A quiet trainer; ``checkpoints``: write ``step=<n>.ckpt`` every so many steps."""
    more = []
    if checkpoints is not None:
        more = [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=checkpoints, save_top_k=-1)]
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": -1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "use_distributed_sampler": False,
        "gradient_clip_val": 1.0,
        "enable_checkpointing": bool(more),
    }
    return L.Trainer(default_root_dir=folder, max_steps=steps, callbacks=[*callbacks, *more], **{**defaults, **options})


class CutOff(L.Callback):
    """A power cut in this optimizer step, before its checkpoint is written."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            raise ConnectionError("the power is gone")


class Killed(L.Callback):
    """kill -9 after this optimizer step: before its checkpoint is written, or while it is."""

    def __init__(self, at: int, writing: bool = False) -> None:
        self.at, self.writing = at, writing

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step != self.at:
            return
        if not self.writing:
            os.kill(os.getpid(), signal.SIGKILL)

        def half(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(file, str | Path):
                Path(file).write_bytes(b"half")
            else:
                file.write(b"half")
                file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half


class Slow(L.Callback):
    """Makes optimizer steps take this much longer, as long as a file is not there."""

    def __init__(self, seconds: float, until: str) -> None:
        self.seconds, self.until = seconds, Path(until)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.until.exists():
            time.sleep(self.seconds)


class Sender(L.Callback):
    """A scheduler's signal in the batch that begins at this optimizer step; to the process, or to all of its session."""

    def __init__(self, name: str, at: int, to_all: bool = False) -> None:
        self.number, self.at, self.sent = getattr(signal, name), at, False
        self.to = f"-{os.getpid()}" if to_all else str(os.getpid())

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at - (1 if self.at else 0) and not self.sent:
            self.sent = True
            subprocess.run(["kill", f"-{int(self.number)}", "--", self.to], check=True, start_new_session=True)


class SpoilLoss(L.Callback):
    """Weights of one batch's forward that give a loss of nan; they are put back before anybody could step from them.

    Args:
        at: optimizer steps before it.
        rank: where it happens.
    """

    def __init__(self, at: int, rank: int = 0) -> None:
        self.at, self.rank, self.kept = at, rank, None

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.at and trainer.global_rank == self.rank:
            head = module.vlm.network.lm_head.weight
            self.kept = head.detach().clone()
            with torch.no_grad():
                head.fill_(float("nan"))

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if self.kept is not None:
            with torch.no_grad():
                module.vlm.network.lm_head.weight.data.copy_(self.kept)
            self.kept = None


class Probe(L.Callback):
    """Writes the loss of every step and the norm of its gradients, unclipped, as JSON."""

    def __init__(self, path: str) -> None:
        self.path, self.steps = Path(path), []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.steps.append([float(norm)])

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.steps[-1].append(float(trainer.callback_metrics["train/loss"]))
        if trainer.is_global_zero:
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.steps))
            os.replace(part, self.path)  # somebody may be reading it


class Logged(L.Callback):
    """Writes what was logged of the last training step, ``train/<name>``, as JSON."""

    def __init__(self, path: str, names: list[str]) -> None:
        self.path, self.names = Path(path), names

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            self.path.write_text(json.dumps([float(trainer.callback_metrics[f"train/{name}"]) for name in self.names]))
