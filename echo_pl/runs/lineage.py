"""The record that checkpoints keep of their run, and what two runs of one chain must have in common: model, data, adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hydra.utils import instantiate
from omegaconf import DictConfig

from echo_pl.backbone.checkpoint import StageRecord, fit_to_checkpoint, read_checkpoint, stored_vision_fingerprint
from echo_pl.backbone.lora import LoraSettings, require_peft
from echo_pl.backbone.vlm import check_same_tower
from echo_pl.config.keys import build, with_values
from echo_pl.data.loading.datamodule import ReportDataModule


class DataIdentity(Protocol):
    """The properties of the data that a checkpoint must match."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of corpus, vocabulary and processing."""

    @property
    def vocabulary_fingerprint(self) -> str:
        """Fingerprint of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A checkpoint that has been read once; every check uses this instead of reading it again."""

    path: Path
    record: StageRecord
    content: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """All but the tensors of a sharded checkpoint; tensors of a file are mapped, not loaded."""

    @classmethod
    def read(cls, path: Path) -> SavedCheckpoint:
        """Read a checkpoint.

        Raises:
            FileNotFoundError: there is no checkpoint at ``path``.
            ValueError: it cannot be read, or is not a checkpoint of this project.
        """
        record, content = read_checkpoint(path)
        return cls(path=path, record=record, content=content)


def check_same_data(data: DataIdentity, start: SavedCheckpoint | None, resume: SavedCheckpoint | None = None) -> None:
    """Check that token ids mean what they meant to the start, and that a resumed run has the same data.

    Raises:
        ValueError: naming both fingerprints.
    """
    saved = None if resume is None else resume.record.data_fingerprint
    if resume is not None and saved and saved != data.fingerprint:  # an imported model records no data
        raise ValueError(
            f"{resume.path} was trained on data with fingerprint {saved}, this run has {data.fingerprint}; resume with the same "
            "corpus, tokenizer and processor settings, or start a new run with start="
        )
    if start is not None and start.record.vocabulary != data.vocabulary_fingerprint:
        raise ValueError(
            f"{start.path} was trained with vocabulary {start.record.vocabulary}, this run has {data.vocabulary_fingerprint}: its "
            "token ids mean other tokens; give data.tokenizer_path=<its tokenizer>, or another start="
        )


def check_model_fits(config: DictConfig, data: ReportDataModule, checkpoint: SavedCheckpoint) -> None:
    """Check that weights fit the configured model, and stored features its vision tower. Builds shapes only.

    Every rank checks by itself, so that none waits for a rank that has failed.

    Raises:
        ValueError: naming the difference.
    """
    skeleton = instantiate(config.backbone.factory, _convert_="all").skeleton(data.special, data.vocab_size)
    fit_to_checkpoint(skeleton, checkpoint.path, checkpoint.record, checkpoint.content)
    if data.vision_fingerprint is not None and config.stage.name in ("rad", "dcd"):  # the other stages train their tower
        tower = stored_vision_fingerprint(skeleton, checkpoint.path, checkpoint.content)
        check_same_tower(data.vision_fingerprint, tower)


def backbone_name(config: DictConfig) -> str:
    """Class name of the backbone's factory: weights fit only models of the same class."""
    return str(config.backbone.factory._target_).rsplit(".", 1)[-1]


def data_name(config: DictConfig) -> str:
    """Name of the corpus folder; for a mixture, the names of its corpora."""
    return "+".join(map(str, config.data.corpora)) if config.data.get("corpora") else Path(config.data.root).name


def lora_record(config: DictConfig) -> dict[str, Any] | None:
    """Settings of low-rank adapters as checkpoints record them."""
    node = config.stage.module.get("lora")
    if node is None:
        return None
    settings: LoraSettings = build(node)
    require_peft()
    return settings.record


def with_saved_adapters(config: DictConfig, record: StageRecord) -> DictConfig:
    """Return the configuration with the adapters of a checkpoint, unless it configures its own."""
    if record.lora is None or "lora" not in config.stage.module or config.stage.module.lora is not None:
        return config
    adapters = {"_target_": f"{LoraSettings.__module__}.{LoraSettings.__name__}", **record.lora}
    return with_values(config, {"stage.module.lora": adapters})


def make_lineage(config: DictConfig, data: DataIdentity, start: SavedCheckpoint | None, chain: str) -> StageRecord:
    """Build the record that every checkpoint of this run keeps; the MLflow run is added once it exists.

    Args:
        config: configuration of the run.
        data: its data.
        start: the checkpoint it starts from.
        chain: name that the stages of one chain share.
    """
    before = None if start is None else start.record
    other_blocks = before is not None and before.block_size not in (None, config.block_size)
    rounds = 0 if before is None else before.distillation_round or int(before.stage == "dcd")
    return StageRecord(
        stage=config.stage.name,
        backbone=backbone_name(config),
        block_size=config.block_size if config.stage.name in ("rad", "dcd") else None,
        grid=config.grid,
        context_attention=config.context_attention,
        data_fingerprint=data.fingerprint,
        start=None if start is None else str(start.path.resolve()),
        start_stage=None if before is None else before.stage,
        start_block_size=before.block_size if before is not None and other_blocks else None,
        distillation_round=rounds + 1 if config.stage.name == "dcd" else None,
        chain=chain,
        vocabulary=data.vocabulary_fingerprint,
        lora=lora_record(config),
    )
