"""Two processes train what one trains: DDP and FSDP2, by Lightning's launcher and by torchrun, from stage to stage.

One run of each launcher is a command, as a user starts it. The others are given to two ranks that stay. Losses and unclipped
gradient norms of three steps agree to 1e-4, and weights to 1 % of the change of each: sums are in another order, and AdamW
divides small gradients by small ones.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from rank_pair import RankPair
from ranks import NAMES, SIZES, SMALL, assert_same_steps, assert_trained_alike, pretrained_checkpoint, probe, steps, weights
from stage_parts import BACKBONE, record, write_checkpoint
from transformers import Qwen2_5_VLForConditionalGeneration

import echo_pl.__main__
from echo_pl.backbone.checkpoint import read_checkpoint
from echo_pl.backbone.factory import TinyBackbone
from echo_pl.backbone.sharded_files import stored_shapes
from echo_pl.config.compose import compose_config
from echo_pl.data.loading.datamodule import ReportDataModule
from echo_pl.data.pipeline.make_corpus import make_synthetic
from echo_pl.distributed.agree import together
from echo_pl.io.run_folders import read_info, resumable_checkpoint
from echo_pl.runs.checkpoint_files import merge, to_hf
from echo_pl.runs.resume import last_readable_checkpoint
from echo_pl.runs.run import run
from echo_pl.runs.stored_features import store_features

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[RankPair]:
    """Two ranks as torchrun starts them, kept for the whole module."""
    ranks = RankPair(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()


class Runs:
    """Small runs of the same corpus: in this process, by two ranks, or as a command of their own."""

    def __init__(self, data_root: Path, outputs: Path, pair: RankPair) -> None:
        self.data_root, self.outputs, self.pair = data_root, outputs, pair

    def settings(self, *overrides: str, outputs: Path | None = None) -> list[str]:
        return [*SMALL, *SIZES, f"data_root={self.data_root}", f"outputs={outputs or self.outputs}", *overrides]

    def alone(self, name: str, *overrides: str) -> Path:
        """Train in one process; return the final checkpoint."""
        with together():
            run(compose_config(self.settings(f"run_name={name}", probe(self.outputs, name), *overrides)))
        return self.final(name)

    def two(self, name: str, *overrides: str) -> Path:
        """Train in two; return the final checkpoint."""
        assert self.pair.run(*self.settings(f"run_name={name}", probe(self.outputs, name), *TWO, *overrides)) == ["", ""]
        return self.final(name)

    def resumed(self, outputs: Path, *overrides: str) -> None:
        """Continue in one process a run of a copied folder."""
        with together():
            run(compose_config(self.settings(*overrides, outputs=outputs)))

    def final(self, name: str) -> Path:
        folder = self.outputs / "runs" / name
        assert read_info(folder).status == "finished"
        return folder / "checkpoints" / "final.ckpt"

    def command(self, *overrides: str, launcher: tuple[str, ...] = ("-m",)) -> subprocess.CompletedProcess[str]:
        """Start ``echo-pl`` as a user does."""
        launchers = ("SLURM_", "TORCHELASTIC", "LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_", "ECHO_PL_")
        module = () if launcher[-1] == echo_pl.__main__.__file__ else ("echo_pl",)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
        return subprocess.run(
            [sys.executable, *launcher, *module, *self.settings(*overrides)],
            env=clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path])},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def launched(self, name: str, *overrides: str, launcher: tuple[str, ...] = ("-m",)) -> Path:
        """Train by a command; return the final checkpoint."""
        done = self.command(f"run_name={name}", probe(self.outputs, name), *TWO, *overrides, launcher=launcher)
        assert done.returncode == 0, done.stderr[-3000:]
        return self.final(name)


@pytest.fixture(scope="module")
def runs(data_root, outputs, pair) -> Runs:
    return Runs(data_root, outputs, pair)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
FABRIC = ("-m", "lightning.fabric.cli", "--accelerator", "cpu", "--devices", "2")


@pytest.fixture(scope="module")
def pretrained(data_root, outputs) -> Path:
    """A stage-1 checkpoint with weights whose reports sometimes end."""
    return pretrained_checkpoint(data_root, outputs)


@pytest.fixture(scope="module")
def rad(pretrained) -> tuple[str, str]:
    return "stage=rad", f"start={pretrained}"


@pytest.fixture(scope="module")
def alone(runs, rad) -> Path:
    """Stage 2 in one process."""
    return runs.alone("one-rad", *rad, "stage.batch_size=4")


@pytest.fixture(scope="module")
def sharded(runs, rad) -> Path:
    """Stage 2 over two processes started by torchrun."""
    return runs.launched("fsdp2-rad", *rad, "trainer=fsdp2", launcher=TORCHRUN)


def test_ddp_by_lightnings_own_launcher(runs, rad, outputs, data_root, alone, pretrained):
    made = runs.launched("ddp-rad", *rad, "trainer=ddp")
    assert_same_steps(alone, made)
    assert_trained_alike(alone, made, pretrained, data_root)
    assert len(list((outputs / "runs").glob("ddp-rad*"))) == 1


def test_fabric_run_is_another_launcher(runs, rad, outputs, alone):
    made = runs.launched("fabric-rad", *rad, "trainer=ddp", launcher=(*FABRIC, echo_pl.__main__.__file__))
    assert_same_steps(alone, made)
    assert len(list((outputs / "runs").glob("fabric-rad*"))) == 1


def test_fsdp2_by_torchrun(data_root, alone, pretrained, sharded):
    assert sharded.is_dir()
    assert sorted(path.suffix for path in sharded.iterdir() if path.name.startswith("__")) == [".distcp", ".distcp"]
    assert not list(sharded.parent.glob("*.partial"))
    about, meta = read_checkpoint(sharded)
    assert (about.stage, about.block_size, meta["global_step"]) == ("rad", 8, 3)
    assert_same_steps(alone, sharded)
    assert_trained_alike(alone, sharded, pretrained, data_root)


@pytest.mark.filterwarnings("ignore:.*noload")
def test_two_ranks_are_one_mlflow_run(runs, rad, outputs):
    """In a database that does not exist yet, which ranks that open it together would make twice."""
    database = f"sqlite:///{outputs / 'ranks.db'}"
    recorded = ["mlflow={tracking_uri: '" + database + "', experiment: ranks, on_failure: error}", "trainer.log_every_n_steps=1"]
    made = runs.two("recorded-rad", *rad, "trainer=ddp", *recorded)
    client = MlflowClient(database)
    (logged,) = client.search_runs([client.get_experiment_by_name("ranks").experiment_id])
    assert (logged.info.run_id, logged.info.status) == (read_checkpoint(made)[0].mlflow_run_id, "FINISHED")
    assert logged.data.metrics["train/loss"] == pytest.approx(float(steps(made)[-1, 1]))


@pytest.mark.parametrize("option", ["gradient_checkpointing", "compile_layers"])
def test_options_of_the_backbone_change_nothing_in_shards(runs, rad, alone, option):
    assert_same_steps(alone, runs.two(f"{option}-rad", *rad, "trainer=fsdp2", f"backbone.factory.{option}=true"))


def test_layers_that_compute_in_bfloat16_with_sums_in_float32(runs, rad, data_root, alone, pretrained):
    """FSDP2's mixed precision: master weights and checkpoints stay in float32; 2^-8 of rounding in a layer, 5 % in a step."""
    made = runs.two("bf16-rad", *rad, "trainer=fsdp2_bf16")
    assert torch.allclose(steps(alone), steps(made), rtol=5e-2)
    assert not torch.allclose(steps(alone), steps(made), rtol=1e-5), "nothing was rounded"
    before, after = weights(pretrained, data_root), weights(made, data_root)
    change = next(after[name] - before[name] for name in after if name.endswith("layers.0.mlp.up_proj.weight"))
    assert 0 < float(change.abs().max()) < 1e-2
    assert bool((change != change.bfloat16().float()).any())


@pytest.mark.parametrize(("ablation", "trainer"), [("ce", "ddp"), (None, "fsdp2")], ids=["ce-ddp", "dcd-fsdp2"])
def test_stage_3_from_sharded_weights(runs, data_root, sharded, ablation, trainer):
    """The teacher decodes on the fly while reports of different lengths keep the ranks apart; under FSDP2 it is sharded too."""
    objective = [f"ablation={ablation}"] if ablation else []
    own = ["stage=dcd", f"start={sharded}", "stage.module.decode.denoising_steps=3", *objective]
    one = runs.alone(f"one-dcd-{trainer}", *own, "stage.batch_size=4")
    two = runs.two(f"two-dcd-{trainer}", *own, f"trainer={trainer}")
    _, meta = read_checkpoint(two)
    assert "dropped_trajectories" in meta
    names = stored_shapes(two) if two.is_dir() else meta["state_dict"]
    assert names
    assert not any("teacher" in name for name in names)
    assert_same_steps(one, two)
    assert_trained_alike(one, two, sharded, data_root)


def test_low_rank_adapters_over_two_processes(runs, rad, data_root, pretrained):
    own = [*rad, "lora=all_linear", "stage.module.lora.rank=4"]
    one = runs.alone("one-lora", *own, "stage.batch_size=4")
    two = runs.two("two-lora", *own, "trainer=fsdp2")
    assert_same_steps(one, two)
    assert_trained_alike(one, two, pretrained, data_root)  # of what both are loaded as, the sum
    assert read_checkpoint(two)[0].lora["rank"] == 4


def test_packed_rows_over_two_processes(runs, rad, outputs, alone):
    """The shares of padding are logged over all ranks: a callback writes those of the last step."""
    seen = f"+callbacks.seen={{_target_: stage_parts.Logged, path: {outputs / 'padding.json'}, names: [padding, padding_unpacked]}}"
    made = runs.two("packed-rad", *rad, "trainer=fsdp2", "stage.module.pack_tokens=600", seen)
    assert_same_steps(alone, made)
    padding, unpacked = json.loads((outputs / "padding.json").read_text())
    assert 0 <= padding <= unpacked < 1


@pytest.fixture(scope="module")
def untrained(data_root, outputs) -> Path:
    data = ReportDataModule(root=data_root / "synthetic")
    vlm = TinyBackbone(**{name: getattr(BACKBONE, name) for name in NAMES}).build(data.special, data.vocab_size)
    return write_checkpoint(outputs / "untrained.ckpt", vlm, record("pretrain", vocabulary=data.vocabulary_fingerprint))


STAGE_1 = ("stage=pretrain", "start=null", "backbone.needs_warmup=false")


@pytest.fixture(scope="module")
def one_pretrain(runs) -> Path:
    return runs.alone("one-pretrain", *STAGE_1, "stage.batch_size=4")


@pytest.mark.parametrize("trainer", ["ddp", "fsdp2"])
def test_stage_1_trains_its_vision_tower_too(runs, data_root, untrained, one_pretrain, trainer):
    two = runs.two(f"two-pretrain-{trainer}", *STAGE_1, f"trainer={trainer}")
    assert_same_steps(one_pretrain, two)
    assert_trained_alike(one_pretrain, two, untrained, data_root)
    before, after = weights(untrained, data_root), weights(two, data_root)
    tower = [name for name in before if ".visual." in name and name.endswith("weight")]
    assert all(not torch.equal(before[name], after[name]) for name in tower)


def test_clipping_was_at_work(alone):
    assert float(steps(alone)[:, 0].max()) > 1.0, "the norm that gradients are clipped to"


def test_stored_vision_features_train_a_sharded_model(runs, rad, outputs, alone):
    store_features(compose_config(runs.settings(*rad)), outputs / "features", "float32", 8)
    made = runs.two("features-rad", *rad, "trainer=fsdp2", f"data.stored_features={outputs / 'features'}")
    assert_same_steps(alone, made)


def test_a_torn_sharded_checkpoint_is_noticed(outputs, sharded, caplog):
    folder = shutil.copytree(sharded.parent, outputs / "torn" / "checkpoints")
    last, previous = folder / "last.ckpt", folder / "previous.ckpt"
    shutil.copytree(last, previous)
    assert last_readable_checkpoint(last).path == last
    (piece, *_) = sorted(last.glob("*.distcp"))
    piece.write_bytes(piece.read_bytes()[:100])
    assert last_readable_checkpoint(last).path == previous
    assert "is missing or shorter than" in caplog.text
    assert not last.exists()
    assert (folder / "last.ckpt.torn").is_dir()
    (previous / "meta.pt").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_checkpoint(previous)


def test_a_sharded_run_resumes_with_other_ranks(runs, rad, outputs, data_root, pretrained, sharded):
    """From the checkpoint of the second of three steps, by one process: the third step is that of two."""
    folder = shutil.copytree(sharded.parent.parent, outputs / "copied" / "runs" / "fsdp2-rad")
    last = folder / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)[1]["global_step"] == 2
    shutil.rmtree(folder / "checkpoints" / "final.ckpt")
    runs.resumed(outputs / "copied", *rad, "trainer=fsdp2", "trainer.devices=1", "stage.batch_size=4", f"resume={last}")
    assert_trained_alike(sharded, folder / "checkpoints" / "final.ckpt", pretrained, data_root)


SPOIL = "+callbacks.spoil={_target_: stage_parts.SpoilLoss, at: 1, rank: 1}"


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(runs, rad, pair):
    problems = pair.run(*runs.settings(*rad, "run_name=spoilt", "trainer=ddp", *TWO, SPOIL))
    assert all("the loss of optimizer step 2 is not finite; studies of the batch: " in problem for problem in problems)


def test_all_ranks_leave_out_a_step_whose_loss_is_not_finite_on_one(runs, rad, data_root):
    own = [*rad, "trainer=ddp", "stage.on_nonfinite_loss=skip", "stage.checkpoint_every=1", "stage.max_steps=2"]
    made = runs.two("skipped-rad", *own, SPOIL)
    one, two = weights(made.parent / "previous.ckpt", data_root), weights(made, data_root)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_ranks_with_different_configurations_are_rejected(runs, rad, pair):
    problems = pair.run(*runs.settings(*rad, "trainer=ddp", *TWO), by_rank=(["seed=0"], ["seed=1"]))
    for problem in problems:
        assert "the ranks of this run were given different configurations: " in problem
        assert "seed is 0 on rank 0 and 1 on rank 1" in problem


def test_another_world_than_asked_is_rejected(runs, rad, pair):
    for problem in pair.run(*runs.settings(*rad, "trainer=cpu")):
        assert "torchrun started 2 processes on each of 1 nodes, the trainer has trainer.devices=1 trainer.num_nodes=1" in problem


def test_a_run_without_shards_does_not_resume_in_shards(runs, rad, alone):
    """Its optimizer states have numbers instead of names, which a sharded run would give to other weights."""
    last = alone.with_name("last.ckpt")
    with pytest.raises(ValueError, match="was written by a trainer that does not shard"), together():
        run(compose_config(runs.settings(*rad, "trainer=fsdp2", *TWO, f"resume={last}")))


def test_shards_that_are_signalled_resume(runs, rad, outputs, data_root, sharded, pair):
    """Both processes get the signal in the second step and end after it; the same two resume."""
    own = runs.settings(*rad, "trainer=fsdp2", *TWO, "run_name=signalled", "stage.checkpoint_every=100")
    signalled = "+callbacks.sender={_target_: stage_parts.Sender, name: SIGUSR1, at: 2}"
    assert all("StoppedError" in problem for problem in pair.run(*own, signalled))
    last = outputs / "runs" / "signalled" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)[1]["global_step"] == 2
    assert pair.run(*own, "resume=auto") == ["", ""]
    one, other = weights(last.with_name("final.ckpt"), data_root), weights(sharded, data_root)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_shards_killed_while_they_write_resume(runs, rad, data_root, pretrained, sharded, pair):
    """kill -9 of a run of one process in its third checkpoint; two processes resume it."""
    own = [*rad, "trainer=fsdp2", "run_name=killed", "stage.checkpoint_every=1"]
    killed = "+callbacks.killed={_target_: stage_parts.Killed, at: 3, writing: true}"
    done = runs.command(*own, "trainer.devices=1", "stage.batch_size=4", killed)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    last = runs.outputs / "runs" / "killed" / "checkpoints" / "last.ckpt"
    assert last.with_name("last.ckpt.partial").exists()
    kept = resumable_checkpoint(last.parent.parent)
    assert read_checkpoint(kept)[1]["global_step"] == 2
    assert pair.run(*runs.settings(*own, *TWO, "resume=auto")) == ["", ""]
    assert not list(last.parent.glob("*.partial"))
    assert_trained_alike(sharded, last.with_name("final.ckpt"), pretrained, data_root)


def test_shards_are_exported(data_root, sharded, tmp_path):
    to_hf(sharded, tmp_path / "model")
    exported = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "model").state_dict()
    ours = {name.removeprefix("network."): value for name, value in weights(sharded, data_root).items()}
    assert exported.keys() == ours.keys()
    assert all(torch.equal(exported[name], ours[name]) for name in exported)


def test_a_sharded_run_resumes_without_sharding_once_merged(runs, rad, outputs, data_root, pretrained, sharded):
    """From the checkpoint of the second of three steps: the third step of one plain process is that of two shards."""
    folder = shutil.copytree(sharded.parent.parent, outputs / "merged" / "runs" / "fsdp2-rad")
    shutil.rmtree(folder / "checkpoints" / "final.ckpt")
    last = folder / "checkpoints" / "last.ckpt"
    own = [*rad, "stage.batch_size=4"]
    with pytest.raises(ValueError, match=f"checkpoint.* merge {last}"):
        runs.resumed(outputs / "merged", *own, f"resume={last}")
    whole = last.with_name("merged.ckpt")
    merge(last, whole)
    runs.resumed(outputs / "merged", *own, f"resume={whole}")
    assert_trained_alike(sharded, folder / "checkpoints" / "final.ckpt", pretrained, data_root)


def test_a_merged_checkpoint_is_the_whole_of_the_shards(data_root, sharded, tmp_path):
    merge(sharded, tmp_path / "whole.ckpt")
    one, other = weights(tmp_path / "whole.ckpt", data_root), weights(sharded, data_root)
    assert all(torch.equal(one[name], other[name]) for name in one)
    (record_of_one, content), (record_of_other, _) = read_checkpoint(tmp_path / "whole.ckpt"), read_checkpoint(sharded)
    assert record_of_one == record_of_other
    (optimizer,) = content["optimizer_states"]
    assert {tuple(sorted(state)) for state in optimizer["state"].values()} == {("exp_avg", "exp_avg_sq", "step")}
    assert [group["weight_decay"] for group in optimizer["param_groups"]] == [0.01, 0.0]
    with pytest.raises(ValueError, match="is one file already"):
        merge(tmp_path / "whole.ckpt", tmp_path / "again.ckpt")


def test_weights_of_a_full_checkpoint_are_those_of_the_shards(runs, rad, outputs, data_root, pretrained, sharded):
    full = runs.two("full-rad", *rad, "trainer=fsdp2", "trainer.strategy.sharded_checkpoints=false")
    assert full.is_file()
    one, other = weights(full, data_root), weights(sharded, data_root)
    assert all(torch.equal(one[name], other[name]) for name in one)
    # From the checkpoint of the second step, by one process.
    folder = shutil.copytree(full.parent.parent, outputs / "narrowed" / "runs" / "full-rad")
    (folder / "checkpoints" / "final.ckpt").unlink()
    last = folder / "checkpoints" / "last.ckpt"
    runs.resumed(outputs / "narrowed", *rad, "trainer=fsdp2", "trainer.devices=1", "stage.batch_size=4", f"resume={last}")
    assert_trained_alike(sharded, folder / "checkpoints" / "final.ckpt", pretrained, data_root)
