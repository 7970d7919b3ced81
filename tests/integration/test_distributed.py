"""Two processes train what one trains: DDP and FSDP2, by Lightning's launcher and by torchrun, from stage to stage.

Every run is a command of its own, as a user starts it. Losses and unclipped gradient norms of three steps agree to 1e-4 of
themselves, and weights to 1 % of the change of each: sums are in another order, and AdamW divides small gradients by small ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stage_parts import BACKBONE, lively, record, write_checkpoint
from torch import Tensor

from echo_pl.backbone.checkpoint import load_weights, read_checkpoint
from echo_pl.backbone.factory import TinyBackbone
from echo_pl.data.datamodule import ReportDataModule
from echo_pl.lineage import whole_or_previous
from echo_pl.runs import read_info
from echo_pl.tools.compose import compose_config
from echo_pl.tools.make_corpus import make_synthetic
from echo_pl.tools.store_features import store_features

NAMES = ("width", "layers", "heads", "key_heads", "mlp_width", "vision_width", "vision_layers", "vision_heads", "vision_mlp_width")
SMALL = [
    "threads=1", "min_free_gb=0", "mlflow=null", "callbacks=none", "trainer.enable_progress_bar=false", "trainer.precision=32-true",
    "stage.max_steps=3", "stage.validate_every=3", "stage.checkpoint_every=2", "stage.eval_batch_size=2", "data.limit_val=4",
    "data.cache_samples=0", "stage.module.generation_batches=1", "max_response_tokens=96",
]  # fmt: skip
TWO = ["stage.batch_size=2", "trainer.devices=2"]
PATIENCE = 300


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_synthetic(folder / "synthetic", train=24, val=4, test=2, seed=2, shard_size=5, progress=False)
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outputs")


def command(data_root: Path, outputs: Path, *overrides: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    sizes = [f"backbone.factory.{name}={getattr(BACKBONE, name)}" for name in NAMES]
    places = [f"data_root={data_root}", f"outputs={outputs}"]
    launchers = ("SLURM_", "TORCHELASTIC", "LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_", "ECHO_PL_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    return subprocess.run(
        [sys.executable, *(launcher or ("-m",)), "echo_pl", *SMALL, *sizes, *places, *overrides],
        env=clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def finished(data_root: Path, outputs: Path, name: str, *overrides: str, launcher: tuple[str, ...] = ()) -> Path:
    """Run a stage to its end; return its final checkpoint."""
    probe = f"+callbacks.probe={{_target_: stage_parts.Probe, path: {outputs / name}.json}}"
    done = command(data_root, outputs, f"run_name={name}", probe, *overrides, launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = outputs / "runs" / name
    assert read_info(folder).status == "finished"
    return folder / "checkpoints" / "final.ckpt"


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


@pytest.fixture(scope="module")
def pretrained(data_root, outputs) -> Path:
    """A stage-1 checkpoint with weights whose reports sometimes end."""
    data = ReportDataModule(root=data_root / "synthetic")
    vlm = lively(replace(BACKBONE, seed=8).build(data.special, data.vocab_size), data.special, eos_scale=2.0)
    return write_checkpoint(outputs / "pretrain.ckpt", vlm, record("pretrain", vocabulary=data.vocabulary_fingerprint))


@pytest.fixture(scope="module")
def alone(data_root, outputs, pretrained) -> Path:
    """Stage 2 in one process."""
    return finished(data_root, outputs, "one-rad", "stage=rad", f"start={pretrained}", "stage.batch_size=4")


def weights(path: Path, data_root: Path) -> dict[str, Tensor]:
    data = ReportDataModule(root=data_root / "synthetic")
    vlm = TinyBackbone(**{name: getattr(BACKBONE, name) for name in NAMES}).build(data.special, data.vocab_size)
    load_weights(vlm, path, ("pretrain", "rad", "dcd"))
    return {name: value.clone() for name, value in vlm.state_dict().items()}


def steps(checkpoint: Path) -> Tensor:
    """Gradient norm and loss of every step of the run that wrote a checkpoint."""
    folder = checkpoint.parent.parent
    return torch.tensor(json.loads((folder.parent.parent / f"{folder.name}.json").read_text()))


def assert_same_steps(one: Path, other: Path) -> None:
    assert steps(one).shape == (3, 2)
    assert float(steps(one)[:, 0].min()) > 0
    assert torch.allclose(steps(one), steps(other), rtol=1e-4), f"{steps(one)} and {steps(other)}"


def assert_trained_alike(one: Path, other: Path, start: Path, data_root: Path) -> None:
    before, first, second = (weights(path, data_root) for path in (start, one, other))
    changes = {name: float((first[name] - before[name]).abs().max()) for name in first}
    assert max(changes.values()) > 1e-4, "nothing was trained"
    for name, value in first.items():
        difference = float((value - second[name]).abs().max())
        assert difference <= 1e-5 + 1e-2 * changes[name], f"{name}: {difference} apart after a change of {changes[name]}"


def test_ddp_by_lightnings_own_launcher(data_root, outputs, alone, pretrained):
    made = finished(data_root, outputs, "ddp-rad", "stage=rad", f"start={pretrained}", "trainer=ddp", *TWO)
    assert_same_steps(alone, made)
    assert_trained_alike(alone, made, pretrained, data_root)
    assert len(list((outputs / "runs").glob("ddp-rad*"))) == 1


@pytest.fixture(scope="module")
def sharded(data_root, outputs, pretrained) -> Path:
    """Stage 2 over two processes started by torchrun."""
    return finished(data_root, outputs, "fsdp2-rad", "stage=rad", f"start={pretrained}", "trainer=fsdp2", *TWO, launcher=TORCHRUN)


def test_fsdp2_by_torchrun(data_root, alone, pretrained, sharded):
    assert sharded.is_dir()
    assert sorted(path.suffix for path in sharded.iterdir() if path.name.startswith("__")) == [".distcp", ".distcp"]
    assert not list(sharded.parent.glob("*.partial"))
    about, meta = read_checkpoint(sharded)
    assert (about.stage, about.block_size, meta["global_step"]) == ("rad", 8, 3)
    assert_same_steps(alone, sharded)
    assert_trained_alike(alone, sharded, pretrained, data_root)


@pytest.mark.parametrize(("ablation", "trainer"), [("ce", "fsdp2"), (None, "ddp")], ids=["ce-fsdp2", "dcd-ddp"])
def test_stage_3_from_sharded_weights(data_root, outputs, sharded, ablation, trainer):
    """The teacher decodes on the fly while reports of different lengths keep the ranks apart; under FSDP2 it is sharded too."""
    own = [
        "stage=dcd",
        f"start={sharded}",
        "stage.module.decode.denoising_steps=3",
        *([f"ablation={ablation}"] if ablation else []),
    ]
    one = finished(data_root, outputs, f"one-dcd-{trainer}", *own, "stage.batch_size=4")
    two = finished(data_root, outputs, f"two-dcd-{trainer}", *own, f"trainer={trainer}", *TWO)
    _, meta = read_checkpoint(two)
    assert "dropped_trajectories" in meta
    assert not any("teacher" in name for name in meta)
    assert_same_steps(one, two)
    assert_trained_alike(one, two, sharded, data_root)


def test_stored_vision_features_train_a_sharded_model(data_root, outputs, pretrained, alone):
    sizes = [f"backbone.factory.{name}={getattr(BACKBONE, name)}" for name in NAMES]
    config = compose_config(
        ["stage=rad", "trainer.precision=32-true", *sizes, f"data_root={data_root}", f"outputs={outputs}", f"start={pretrained}",
         "min_free_gb=0", "max_response_tokens=96"]
    )  # fmt: skip
    store_features(config, outputs / "features", "float32", 8)
    stored = f"data.stored_features={outputs / 'features'}"
    made = finished(data_root, outputs, "features-rad", "stage=rad", f"start={pretrained}", "trainer=fsdp2", *TWO, stored)
    assert_same_steps(alone, made)


def test_a_torn_sharded_checkpoint_is_noticed(outputs, sharded, caplog):
    folder = shutil.copytree(sharded.parent, outputs / "torn" / "checkpoints")
    last, previous = folder / "last.ckpt", folder / "previous.ckpt"
    shutil.copytree(last, previous)
    assert whole_or_previous(last) == last
    (piece, *_) = sorted(last.glob("*.distcp"))
    piece.write_bytes(piece.read_bytes()[:100])
    assert whole_or_previous(last) == previous
    assert "is missing or shorter than" in caplog.text
    assert not last.exists()
    assert (folder / "last.ckpt.torn").is_dir()
    (previous / "meta.pt").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_checkpoint(previous)


def test_a_sharded_run_goes_on_with_other_ranks(data_root, outputs, pretrained, sharded):
    """From the checkpoint of the second of three steps, by one process: the third step is that of two."""
    folder = shutil.copytree(sharded.parent.parent, outputs / "copied" / "runs" / "fsdp2-rad")
    last = folder / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)[1]["global_step"] == 2
    shutil.rmtree(folder / "checkpoints" / "final.ckpt")
    own = ["stage=rad", f"start={pretrained}", "trainer=fsdp2", "trainer.devices=1", "stage.batch_size=4"]
    done = command(data_root, outputs / "copied", *own, f"resume={last}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_trained_alike(sharded, folder / "checkpoints" / "final.ckpt", pretrained, data_root)


def test_another_world_than_asked_is_refused(data_root, outputs, pretrained):
    done = command(data_root, outputs, "stage=rad", f"start={pretrained}", "trainer=cpu", launcher=TORCHRUN)
    assert done.returncode != 0
    assert "torchrun started 2 processes on each of 1 nodes, the trainer wants trainer.devices=1 trainer.num_nodes=1" in done.stderr


def test_weights_of_a_full_checkpoint_are_those_of_the_shards(data_root, outputs, pretrained, sharded):
    full = finished(
        data_root, outputs, "full-rad", "stage=rad", f"start={pretrained}", "trainer=fsdp2", *TWO,
        "trainer.strategy.sharded_checkpoints=false", launcher=TORCHRUN,
    )  # fmt: skip
    assert full.is_file()
    one, other = weights(full, data_root), weights(sharded, data_root)
    assert all(torch.equal(one[name], other[name]) for name in one)
