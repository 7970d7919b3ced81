"""A run's start: every checkpoint is read once, and the configuration is not changed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf
from ranks import SIZES, SMALL, pretrained_checkpoint
from stage_parts import record, write_checkpoint

from echo_pl.backbone.checkpoint import read_checkpoint
from echo_pl.config.compose import compose_config
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.runs.run import run

pytestmark = pytest.mark.slow

COMMON = [*(one for one in SMALL if one != "callbacks=none"), *SIZES, "callbacks.trajectories=null", "stage.max_steps=1"]


class FitReachedError(Exception):
    """Ends a run where training would begin."""


@pytest.fixture(scope="module")
def root(tmp_path_factory, medium_data) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "data").symlink_to(medium_data)
    return folder


@pytest.fixture(scope="module")
def chain(root) -> dict[str, Path]:
    """Checkpoints of stages 1 to 3 that start from one another."""
    paths = {"pretrain": pretrained_checkpoint(root / "data", root)}
    data = ReportDataModule(root=root / "data" / "synthetic")
    weights = {name.removeprefix("vlm."): value for name, value in read_checkpoint(paths["pretrain"])[1]["state_dict"].items()}
    vlm = type("Weights", (), {"state_dict": lambda self: weights})()
    before = "pretrain"
    for stage in ("rad", "dcd"):
        about = record(stage, start=str(paths[before]), start_stage=before, vocabulary=data.vocabulary_fingerprint, block_size=8)
        paths[stage] = write_checkpoint(root / f"{stage}.ckpt", vlm, about)
        before = stage
    return paths


@pytest.mark.parametrize("settings", [("start=rad",), ("resume=dcd",)], ids=["start", "resume"])
def test_every_checkpoint_is_read_once_before_training(root, chain, tmp_path, monkeypatch, settings):
    reads: Counter[str] = Counter()
    load = torch.load

    def counted(file, *args, **kwargs):
        reads[Path(file).stem] += 1
        return load(file, *args, **kwargs)

    def fit(*args, **kwargs):
        raise FitReachedError

    monkeypatch.setattr(torch, "load", counted)
    monkeypatch.setattr(L.Trainer, "fit", fit)
    given = [f"{name}={chain[stage]}" for name, stage in (one.split("=") for one in settings)]
    config = compose_config([*COMMON, f"data_root={root / 'data'}", f"outputs={tmp_path}", "stage=dcd", *given])
    with pytest.raises(FitReachedError):
        run(config)
    read = ["rad", "pretrain"] if settings == ("start=rad",) else ["dcd", "rad", "pretrain"]
    assert reads == Counter(read)


def test_the_configuration_is_not_changed(root, chain, tmp_path):
    places = [f"data_root={root / 'data'}", f"outputs={tmp_path}"]

    def checked(*overrides: str) -> Path:
        config = compose_config([*COMMON, *places, "stage=rad", *overrides])
        before = OmegaConf.to_container(config, resolve=False)
        OmegaConf.set_readonly(config, True)
        checkpoint = run(config).checkpoint
        assert OmegaConf.to_container(config, resolve=False) == before
        return checkpoint

    trained = checked(f"start={chain['pretrain']}")
    checked("task=validate", f"resume={trained}")
