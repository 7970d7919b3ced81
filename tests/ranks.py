"""Small runs as commands, to be compared with one another: what tests of several processes and of SLURM share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from stage_parts import BACKBONE, lively, record, write_checkpoint
from torch import Tensor

from echo_pl.backbone.checkpoint import load_weights
from echo_pl.backbone.factory import TinyBackbone
from echo_pl.data.loading.datamodule import ReportDataModule

NAMES = ("width", "layers", "heads", "key_heads", "mlp_width", "vision_width", "vision_layers", "vision_heads", "vision_mlp_width")
SIZES = [f"backbone.factory.{name}={getattr(BACKBONE, name)}" for name in NAMES]
SMALL = [
    "threads=1", "min_free_gb=0", "mlflow=null", "callbacks=none", "trainer.enable_progress_bar=false", "trainer.precision=32-true",
    "stage.max_steps=3", "stage.validate_every=3", "stage.checkpoint_every=2", "stage.eval_batch_size=2", "data.limit_val=4",
    "data.cache_samples=0", "stage.module.generation_batches=1", "max_response_tokens=96",
]  # fmt: skip


def probe(outputs: Path, name: str) -> str:
    """The override that has a run write its steps."""
    return f"+callbacks.probe={{_target_: stage_parts.Probe, path: {outputs / name}.json}}"


def pretrained_checkpoint(data_root: Path, folder: Path) -> Path:
    """A stage-1 checkpoint with weights whose reports sometimes end."""
    data = ReportDataModule(root=data_root / "synthetic")
    vlm = lively(replace(BACKBONE, seed=8).build(data.special, data.vocab_size), data.special, eos_scale=2.0)
    return write_checkpoint(folder / "pretrain.ckpt", vlm, record("pretrain", vocabulary=data.vocabulary_fingerprint))


def weights(path: Path, data_root: Path) -> dict[str, Tensor]:
    """Weights of the model in a checkpoint."""
    data = ReportDataModule(root=data_root / "synthetic")
    vlm = TinyBackbone(**{name: getattr(BACKBONE, name) for name in NAMES}).build(data.special, data.vocab_size)
    load_weights(vlm, path, ("pretrain", "rad", "dcd"))
    return {name: value.clone() for name, value in vlm.state_dict().items()}


def steps(checkpoint: Path) -> Tensor:
    """Gradient norm and loss of every step of the run that wrote a checkpoint."""
    folder = checkpoint.parent.parent
    return torch.tensor(json.loads((folder.parent.parent / f"{folder.name}.json").read_text()))


def assert_same_steps(one: Path, other: Path) -> None:
    """To 1e-4 of themselves: sums are in another order."""
    assert steps(one).shape == (3, 2)
    assert float(steps(one)[:, 0].min()) > 0
    assert torch.allclose(steps(one), steps(other), rtol=1e-4), f"{steps(one)} and {steps(other)}"


def assert_trained_alike(one: Path, other: Path, start: Path, data_root: Path) -> None:
    """To 1 % of the change of each weight: AdamW divides small gradients by small ones."""
    before, first, second = (weights(path, data_root) for path in (start, one, other))
    changes = {name: float((first[name] - before[name]).abs().max()) for name in first}
    assert max(changes.values()) > 1e-4, "nothing was trained"
    for name, value in first.items():
        difference = float((value - second[name]).abs().max())
        assert difference <= 1e-5 + 1e-2 * changes[name], f"{name}: {difference} apart after a change of {changes[name]}"
