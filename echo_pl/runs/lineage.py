"""What a checkpoint says of the run that wrote it, and what it must have in common with one that uses it: model, data, adapters.

Knows the configuration and records; looks for no checkpoint (echo_pl.runs.start, echo_pl.runs.resume) and builds no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from echo_pl.backbone.checkpoint import StageRecord, read_checkpoint
from echo_pl.backbone.lora import LoraSettings, require_peft
from echo_pl.config.keys import build


class DataIdentity(Protocol):
    """What of the data a checkpoint must be matched with."""

    @property
    def fingerprint(self) -> str:
        """Of corpus, vocabulary and processing."""

    @property
    def vocabulary_fingerprint(self) -> str:
        """Of what the token ids mean."""


def refuse_other_data(data: DataIdentity, resume: Path | None, start: Path | None, before: StageRecord | None) -> None:
    """Refuse weights that were trained on token ids of another meaning, and a resume on other data.

    Raises:
        ValueError: naming both fingerprints.
    """
    if resume is not None:
        had = read_checkpoint(resume)[0].data_fingerprint
        if had and had != data.fingerprint:  # an imported model says nothing of data
            raise ValueError(
                f"{resume} was trained on data with fingerprint {had}, this run has {data.fingerprint}; resume with the same "
                "corpus, tokenizer and processor settings, or start a new run with start="
            )
    if before is not None and before.vocabulary != data.vocabulary_fingerprint:
        raise ValueError(
            f"{start} was trained with vocabulary {before.vocabulary}, this run has {data.vocabulary_fingerprint}: its token ids "
            "mean other tokens; give data.tokenizer_path=<its tokenizer>, or another start="
        )


def backbone_name(config: DictConfig) -> str:
    """Class name of the backbone's factory: weights of one class may fit, those of another cannot."""
    return str(config.backbone.factory._target_).rsplit(".", 1)[-1]


def data_name(config: DictConfig) -> str:
    """Name of the corpus folder; of a mixture, those of its corpora."""
    return "+".join(map(str, config.data.corpora)) if config.data.get("corpora") else Path(config.data.root).name


def lora_record(config: DictConfig) -> dict[str, Any] | None:
    """Settings of low-rank adapters as checkpoints keep them."""
    node = config.stage.module.get("lora")
    if node is None:
        return None
    settings: LoraSettings = build(node)
    require_peft()
    return settings.record


def adopt_lora(config: DictConfig, checkpoint: Path) -> None:
    """Look at a checkpoint with the adapters that it has, where the configuration says nothing of any."""
    had = read_checkpoint(checkpoint)[0].lora
    if had is not None and "lora" in config.stage.module and config.stage.module.lora is None:
        config.stage.module.lora = {"_target_": f"{LoraSettings.__module__}.{LoraSettings.__name__}", **had}


def make_lineage(
    config: DictConfig, data: DataIdentity, start: Path | None, chain: str, before: StageRecord | None = None
) -> StageRecord:
    """What every checkpoint of this run will say of itself; the MLflow run is added once it exists.

    Args:
        config: of the run.
        data: likewise.
        start: the checkpoint it starts from.
        chain: name that the stages of one chain share.
        before: what ``start`` says of itself.
    """
    other_blocks = before is not None and before.block_size not in (None, config.block_size)
    rounds = 0 if before is None else before.distillation_round or int(before.stage == "dcd")
    return StageRecord(
        stage=config.stage.name,
        backbone=backbone_name(config),
        block_size=config.block_size if config.stage.name in ("rad", "dcd") else None,
        grid=config.grid,
        context_attention=config.context_attention,
        data_fingerprint=data.fingerprint,
        start=None if start is None else str(start.resolve()),
        start_stage=None if before is None else before.stage,
        start_block_size=before.block_size if before is not None and other_blocks else None,
        distillation_round=rounds + 1 if config.stage.name == "dcd" else None,
        chain=chain,
        vocabulary=data.vocabulary_fingerprint,
        lora=lora_record(config),
    )
