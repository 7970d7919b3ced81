"""Shared parts of the observers. An observer does not change its run: without it the loss curve is bit-identical."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from mlflow import MlflowClient
from torch import Tensor, nn

from echo_pl.evaluation.harness import Sampler
from echo_pl.reports.report import ReportJudge
from echo_pl.structs import Batch, SpecialTokens


class ReportData(Protocol):
    """Part of the data module that observers use."""

    special: SpecialTokens
    vocab_size: int
    fingerprint: str

    @property
    def judge(self) -> ReportJudge | None:
        """Judge of the corpus, if it has a grammar."""

    def detokenize(self, tokens: Tensor) -> str:
        """Convert 1-D token ids to text."""

    def held_out_batches(self, split: str, batch_size: int, limit: int) -> list[Batch]:
        """Return the first ``limit`` studies of a split in a fixed order, the same on every rank."""


class ReportModule(Protocol):
    """Part of a stage that observers use."""

    stage_name: str
    vlm: Any
    sampler: Sampler


def report_data(trainer: Trainer) -> ReportData:
    """The trainer's data module; raise ValueError if the trainer was started with loaders instead of one."""
    data: ReportData | None = trainer.datamodule  # type: ignore[attr-defined]
    if data is None:
        raise ValueError("this callback decodes held-out studies: start the trainer with datamodule=..., not with loaders")
    return data


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the states of the Python, NumPy and torch generators afterwards, also after an error."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def observing(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Decode inside a run, in its precision, without gradients and in eval mode; restore random states and modes afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    with preserved_rng(), torch.no_grad(), trainer.precision_plugin.forward_context():
        module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training


def mlflow_runs(trainer: Trainer) -> list[tuple[MlflowClient, str]]:
    """Client and run id of every MLflow logger; call on rank 0 only, where the run exists."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, MLFlowLogger)]
    return [(logger.experiment, str(logger.run_id)) for logger in loggers]


def log_files(trainer: Trainer, folder: str, *paths: Path) -> None:
    """Copy files into the artifacts of every MLflow run of the trainer."""
    for client, run_id in mlflow_runs(trainer):
        for path in paths:
            client.log_artifact(run_id, str(path), folder)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Freeze every weight for a while, so that all timed models take the same path through the code."""
    training = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in training:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in training:
            parameter.requires_grad_(True)
