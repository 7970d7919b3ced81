"""Options of an evaluation, and checks of their combinations."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch

from echo_pl.evaluation.radeval_backend import BACKENDS
from echo_pl.evaluation.score_files import AGGREGATE

LABELLER = "labeller"
"""Reads real reports, English and Chinese."""
JUDGES = ("synthetic", "nih")
"""Corpora with a fixed set of English sentences."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of ``echo-pl evaluate``; its help explains each."""

    predictions: Path | None = None
    checkpoint: Path | None = None
    upload: Path | None = None
    references: Path | None = None
    against: Path | None = None
    free_text: bool = False
    split: Literal["val", "test"] | None = None
    studies: int | None = None
    batch_size: int | None = None
    overrides: tuple[str, ...] = ()
    language: Literal["en", "zh"] = "en"
    sections: Literal["both", "findings", "impression"] = "both"
    reader: Literal["labeller", "synthetic", "nih"] | None = None
    vocabulary: Path | None = None
    version: Literal["normalized", "raw"] | None = None
    wordnet: bool = False
    language_model: Path | None = None
    embedding_model: Path | None = None
    clinical: tuple[str, ...] = ()
    clinical_models: Path | None = None
    device: str | None = None
    seed: int = 0
    resamples: int = 1000
    rounds: int = 10_000
    level: float = 0.95
    out: Path | None = None
    overwrite: bool = False
    worst: int = 20
    worst_by: str | None = None
    mlflow: str | None = None
    mlflow_texts: bool = False
    experiment: str | None = None

    @property
    def folder(self) -> Path:
        """Folder to write, which :func:`check_options` requires."""
        assert self.out is not None
        return self.out


def check_options(options: Options) -> None:
    """Check the options before anything is computed.

    Raises:
        ValueError: an invalid option or combination.
        FileNotFoundError: a file or model is missing.
        FileExistsError: ``--out`` holds an evaluation.
    """
    if (options.predictions is None) == (options.checkpoint is None):
        raise ValueError("give --predictions <file> or --checkpoint <file>, one of them")
    _check_unused(options)
    if options.out is None:
        raise ValueError("give --out <folder> to write to")
    if options.predictions is not None and options.overrides:
        raise ValueError(f"configuration is for --checkpoint; with --predictions it has no use: {' '.join(options.overrides)}")
    if options.checkpoint is not None and (options.references is not None or options.free_text):
        raise ValueError("--references and --free-text are for --predictions; a checkpoint's studies have their own references")
    for name in ("predictions", "checkpoint", "references", "against", "vocabulary", "language_model", "embedding_model"):
        path = getattr(options, name)
        if path is not None and not path.exists():
            raise FileNotFoundError(f"--{name.replace('_', '-')}: there is no {path}")
    if options.clinical_models is not None and not options.clinical:
        raise ValueError(f"--clinical-models has no use without --clinical ({', '.join(BACKENDS)} or all)")
    if unknown := sorted(set(options.clinical) - {*BACKENDS, "all"}):
        raise ValueError(f"--clinical has no {unknown[0]!r}: give {', '.join(BACKENDS)} or all")
    if options.worst < 0:
        raise ValueError(f"--worst shows so many reports, 0 or more; got {options.worst}")
    _check_device(options)
    if options.reader in JUDGES and options.language != "en":
        raise ValueError(f"--reader {options.reader} reads English only; for {options.language!r} give --reader {LABELLER}")
    if (options.folder / AGGREGATE).exists() and not options.overwrite:
        raise FileExistsError(f"there is an evaluation in {options.out}: give another --out, or --overwrite")


def check_upload(options: Options) -> None:
    """Check the options of ``--upload``; raises ValueError."""
    used = ("upload", "mlflow", "mlflow_texts", "experiment")
    unused = [each.name for each in fields(Options) if each.name not in used and getattr(options, each.name) != each.default]
    if unused:
        named = ", ".join("configuration" if name == "overrides" else f"--{name.replace('_', '-')}" for name in unused)
        raise ValueError(f"--upload logs a finished evaluation: leave out {named}")
    if options.mlflow is None:
        raise ValueError("--upload needs --mlflow <tracking uri>")


def _check_device(options: Options) -> None:
    if options.device is None:
        return
    if options.language_model is None and options.embedding_model is None and not options.clinical:
        raise ValueError(
            "--device is where models that score run, and there are none (--language-model, --embedding-model, --clinical); a "
            "checkpoint decodes on trainer.accelerator="
        )
    try:
        device = torch.device(options.device)
    except RuntimeError:
        raise ValueError(f"--device must be cpu, cuda or cuda:<number>, got {options.device!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:<number>, got {options.device!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {options.device}: this machine has {torch.cuda.device_count()} GPUs that torch can use")


def _check_unused(options: Options) -> None:
    for name in ("split", "studies", "batch_size"):
        if options.checkpoint is None and getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for --checkpoint; all of --predictions are scored")
    if options.version is not None and options.vocabulary is None:
        raise ValueError("--version selects the reports of --vocabulary: give --vocabulary, too")
    if options.mlflow is None and (options.mlflow_texts or options.experiment is not None):
        raise ValueError("--mlflow-texts and --experiment are options of --mlflow: give --mlflow <tracking uri>, too")
