"""Two processes train what one trains: DDP and FSDP2, by Lightning's launcher and by torchrun, from stage to stage.

Every run is a command of its own, as a user starts it. Losses and unclipped gradient norms of three steps agree to 1e-4 of
themselves, and weights to 1 % of the change of each: sums are in another order, and AdamW divides small gradients by small ones.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
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
from echo_pl.io.run_folders import read_info, resumable_checkpoint
from echo_pl.runs.checkpoint_files import merge, to_hf
from echo_pl.runs.resume import last_readable_checkpoint
from echo_pl.runs.stored_features import store_features

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
    places = [f"data_root={data_root}", f"outputs={outputs}"]
    launchers = ("SLURM_", "TORCHELASTIC", "LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_", "ECHO_PL_")
    module = () if launcher and launcher[-1] == echo_pl.__main__.__file__ else ("echo_pl",)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    return subprocess.run(
        [sys.executable, *(launcher or ("-m",)), *module, *SMALL, *SIZES, *places, *overrides],
        env=clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def finished(data_root: Path, outputs: Path, name: str, *overrides: str, launcher: tuple[str, ...] = ()) -> Path:
    """Run a stage to its end; return its final checkpoint."""
    done = command(data_root, outputs, f"run_name={name}", probe(outputs, name), *overrides, launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = outputs / "runs" / name
    assert read_info(folder).status == "finished"
    return folder / "checkpoints" / "final.ckpt"


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


@pytest.fixture(scope="module")
def pretrained(data_root, outputs) -> Path:
    """A stage-1 checkpoint with weights whose reports sometimes end."""
    return pretrained_checkpoint(data_root, outputs)


@pytest.fixture(scope="module")
def alone(data_root, outputs, pretrained) -> Path:
    """Stage 2 in one process."""
    return finished(data_root, outputs, "one-rad", "stage=rad", f"start={pretrained}", "stage.batch_size=4")


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


@pytest.mark.filterwarnings("ignore:.*noload")
def test_two_ranks_are_one_mlflow_run(data_root, outputs, pretrained):
    """In a database that does not exist yet, which ranks that open it together would make twice."""
    database = f"sqlite:///{outputs / 'ranks.db'}"
    recorded = ["mlflow={tracking_uri: '" + database + "', experiment: ranks, on_failure: error}", "trainer.log_every_n_steps=1"]
    own = ["stage=rad", f"start={pretrained}", "trainer=ddp", *TWO]
    made = finished(data_root, outputs, "recorded-rad", *own, *recorded, launcher=TORCHRUN)
    (run,) = MlflowClient(database).search_runs([MlflowClient(database).get_experiment_by_name("ranks").experiment_id])
    assert (run.info.run_id, run.info.status) == (read_checkpoint(made)[0].mlflow_run_id, "FINISHED")
    assert run.data.metrics["train/loss"] == pytest.approx(float(steps(made)[-1, 1]))


def test_activation_checkpointing_in_shards_changes_nothing(data_root, outputs, alone, pretrained):
    own = ["stage=rad", f"start={pretrained}", "trainer=fsdp2", *TWO, "backbone.factory.gradient_checkpointing=true"]
    assert_same_steps(alone, finished(data_root, outputs, "checkpointing-rad", *own))


def test_layers_that_compute_in_bfloat16_with_sums_in_float32(data_root, outputs, alone, pretrained):
    """FSDP2's mixed precision: master weights and checkpoints stay in float32; 2^-8 of rounding in a layer, 5 % in a step."""
    made = finished(data_root, outputs, "bf16-rad", "stage=rad", f"start={pretrained}", "trainer=fsdp2_bf16", *TWO)
    assert torch.allclose(steps(alone), steps(made), rtol=5e-2)
    assert not torch.allclose(steps(alone), steps(made), rtol=1e-5), "nothing was rounded"
    before, after = weights(pretrained, data_root), weights(made, data_root)
    change = next(after[name] - before[name] for name in after if name.endswith("layers.0.mlp.up_proj.weight"))
    assert 0 < float(change.abs().max()) < 1e-2
    assert bool((change != change.bfloat16().float()).any())


@pytest.mark.parametrize(("ablation", "trainer"), [("ce", "ddp"), (None, "fsdp2")], ids=["ce-ddp", "dcd-fsdp2"])
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
    names = stored_shapes(two) if two.is_dir() else meta["state_dict"]
    assert names
    assert not any("teacher" in name for name in names)
    assert_same_steps(one, two)
    assert_trained_alike(one, two, sharded, data_root)


def test_low_rank_adapters_over_two_processes(data_root, outputs, pretrained):
    own = ["stage=rad", f"start={pretrained}", "lora=all_linear", "stage.module.lora.rank=4"]
    one = finished(data_root, outputs, "one-lora", *own, "stage.batch_size=4")
    two = finished(data_root, outputs, "two-lora", *own, "trainer=fsdp2", *TWO)
    assert_same_steps(one, two)
    assert_trained_alike(one, two, pretrained, data_root)  # of what both are loaded as, the sum
    assert read_checkpoint(two)[0].lora["rank"] == 4


def test_packed_rows_over_two_processes(data_root, outputs, pretrained, alone):
    """The shares of padding are logged, of all ranks: written by a callback that looks at the last step."""
    own = ["stage=rad", f"start={pretrained}", "trainer=fsdp2", *TWO, "stage.module.pack_tokens=600"]
    seen = f"+callbacks.seen={{_target_: stage_parts.Logged, path: {outputs / 'padding.json'}, names: [padding, padding_unpacked]}}"
    made = finished(data_root, outputs, "packed-rad", *own, seen)
    assert_same_steps(alone, made)
    padding, unpacked = json.loads((outputs / "padding.json").read_text())
    assert 0 <= padding <= unpacked < 1


@pytest.mark.parametrize("trainer", ["ddp", "fsdp2"])
def test_stage_1_trains_its_vision_tower_too(data_root, outputs, trainer):
    data = ReportDataModule(root=data_root / "synthetic")
    untrained = TinyBackbone(**{name: getattr(BACKBONE, name) for name in NAMES}).build(data.special, data.vocab_size)
    first = write_checkpoint(outputs / "untrained.ckpt", untrained, record("pretrain", vocabulary=data.vocabulary_fingerprint))
    own = ["stage=pretrain", "start=null", "backbone.needs_warmup=false"]
    one = outputs / "runs" / "one-pretrain" / "checkpoints" / "final.ckpt"
    if not one.exists():
        finished(data_root, outputs, "one-pretrain", *own, "stage.batch_size=4")
    two = finished(data_root, outputs, f"two-pretrain-{trainer}", *own, f"trainer={trainer}", *TWO)
    assert_same_steps(one, two)
    assert_trained_alike(one, two, first, data_root)
    before, after = weights(first, data_root), weights(two, data_root)
    tower = [name for name in before if ".visual." in name and name.endswith("weight")]
    assert all(not torch.equal(before[name], after[name]) for name in tower)


def test_compiled_layers_in_shards(data_root, outputs, alone, pretrained):
    own = ["stage=rad", f"start={pretrained}", "trainer=fsdp2", *TWO, "backbone.factory.compile_layers=true"]
    assert_same_steps(alone, finished(data_root, outputs, "compiled-rad", *own))


def test_clipping_was_at_work(alone):
    assert float(steps(alone)[:, 0].max()) > 1.0, "the norm that gradients are clipped to"


FABRIC = ("-m", "lightning.fabric.cli", "--accelerator", "cpu", "--devices", "2")


def test_fabric_run_is_another_launcher(data_root, outputs, pretrained, alone):
    own = ["stage=rad", f"start={pretrained}", "trainer=ddp", *TWO]
    made = finished(data_root, outputs, "fabric-rad", *own, launcher=(*FABRIC, echo_pl.__main__.__file__))
    assert_same_steps(alone, made)
    assert len(list((outputs / "runs").glob("fabric-rad*"))) == 1


def test_stored_vision_features_train_a_sharded_model(data_root, outputs, pretrained, alone):
    config = compose_config(
        ["stage=rad", "trainer.precision=32-true", *SIZES, f"data_root={data_root}", f"outputs={outputs}", f"start={pretrained}",
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


SPOIL = "+callbacks.spoil={_target_: stage_parts.SpoilLoss, at: 1, rank: 1}"


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(data_root, outputs, pretrained):
    done = command(data_root, outputs, "stage=rad", f"start={pretrained}", "trainer=ddp", *TWO, SPOIL, launcher=TORCHRUN)
    assert done.returncode != 0
    assert done.stderr.count("the loss of optimizer step 2 is not finite; studies of the batch: ") == 2


def test_all_ranks_leave_out_a_step_whose_loss_is_not_finite_on_one(data_root, outputs, pretrained):
    own = ["stage=rad", f"start={pretrained}", "trainer=ddp", *TWO, "stage.on_nonfinite_loss=skip", "stage.checkpoint_every=1"]
    made = finished(data_root, outputs, "skipped-rad", *own, "stage.max_steps=2", SPOIL)
    one, two = weights(made.parent / "previous.ckpt", data_root), weights(made, data_root)
    assert all(torch.equal(one[name], two[name]) for name in one)


OTHER_SEED = """
import os, sys
sys.argv = ["echo-pl", *sys.argv[2:], f"seed={os.environ['RANK']}"]
from echo_pl.__main__ import main
main()
"""


def test_ranks_with_different_configurations_are_refused(data_root, outputs, pretrained, tmp_path):
    script = tmp_path / "other_seed.py"
    script.write_text(OTHER_SEED)
    torchrun = (*TORCHRUN[:-1], str(script))  # the module's name comes behind it, as an argument that the script drops
    done = command(data_root, outputs, "stage=rad", f"start={pretrained}", "trainer=ddp", *TWO, launcher=torchrun)
    assert done.returncode != 0
    assert "the ranks of this run were given different configurations: " in done.stderr
    assert "seed is 0 on rank 0 and 1 on rank 1" in done.stderr


def test_a_run_without_shards_does_not_go_on_in_shards(data_root, outputs, pretrained, alone):
    """Its optimizer states have numbers in the place of names, which a sharded run would give to other weights."""
    last = alone.with_name("last.ckpt")
    done = command(data_root, outputs, "stage=rad", f"start={pretrained}", "trainer=fsdp2", *TWO, f"resume={last}")
    assert done.returncode == 2
    assert f"{last} was written by a trainer that does not shard" in done.stderr


def test_shards_that_are_told_to_stop_go_on(data_root, outputs, pretrained, sharded):
    """Both processes get the signal in the second step, end behind it, and the same two go on."""
    own = ["stage=rad", f"start={pretrained}", "trainer=fsdp2", *TWO, "run_name=told", "stage.checkpoint_every=100"]
    told = "+callbacks.sender={_target_: stage_parts.Sender, name: SIGUSR1, at: 2}"
    done = command(data_root, outputs, *own, told, launcher=TORCHRUN)
    assert done.returncode != 0
    last = outputs / "runs" / "told" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)[1]["global_step"] == 2
    done = command(data_root, outputs, *own, "resume=auto", launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = weights(last.with_name("final.ckpt"), data_root), weights(sharded, data_root)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_shards_killed_while_they_write_go_on(data_root, outputs, pretrained, sharded):
    """kill -9 of a run of one process in its third checkpoint; two processes go on with it."""
    own = ["stage=rad", f"start={pretrained}", "trainer=fsdp2", "run_name=killed", "stage.checkpoint_every=1"]
    killed = "+callbacks.killed={_target_: stage_parts.Killed, at: 3, writing: true}"
    done = command(data_root, outputs, *own, "trainer.devices=1", "stage.batch_size=4", killed)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    last = outputs / "runs" / "killed" / "checkpoints" / "last.ckpt"
    assert last.with_name("last.ckpt.partial").exists()
    kept = resumable_checkpoint(last.parent.parent)
    assert read_checkpoint(kept)[1]["global_step"] == 2
    done = command(data_root, outputs, *own, *TWO, "resume=auto", launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(last.parent.glob("*.partial"))
    assert_trained_alike(sharded, last.with_name("final.ckpt"), pretrained, data_root)


def test_shards_are_exported(data_root, outputs, sharded, tmp_path):
    to_hf(sharded, tmp_path / "model")
    exported = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "model").state_dict()
    ours = {name.removeprefix("network."): value for name, value in weights(sharded, data_root).items()}
    assert exported.keys() == ours.keys()
    assert all(torch.equal(exported[name], ours[name]) for name in exported)


def test_a_sharded_run_goes_on_without_sharding_once_merged(data_root, outputs, pretrained, sharded):
    """From the checkpoint of the second of three steps: the third step of one plain process is that of two shards."""
    folder = shutil.copytree(sharded.parent.parent, outputs / "merged" / "runs" / "fsdp2-rad")
    shutil.rmtree(folder / "checkpoints" / "final.ckpt")
    last = folder / "checkpoints" / "last.ckpt"
    own = ["stage=rad", f"start={pretrained}", "stage.batch_size=4"]
    refused = command(data_root, outputs / "merged", *own, f"resume={last}")
    assert refused.returncode == 2
    assert f"echo-pl checkpoint merge {last}" in refused.stderr
    whole = last.with_name("merged.ckpt")
    merge(last, whole)
    done = command(data_root, outputs / "merged", *own, f"resume={whole}")
    assert done.returncode == 0, done.stderr[-3000:]
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
    # From the checkpoint of the second step, by one process.
    folder = shutil.copytree(full.parent.parent, outputs / "narrowed" / "runs" / "full-rad")
    (folder / "checkpoints" / "final.ckpt").unlink()
    own = ["stage=rad", f"start={pretrained}", "trainer=fsdp2", "trainer.devices=1", "stage.batch_size=4"]
    done = command(data_root, outputs / "narrowed", *own, f"resume={folder / 'checkpoints' / 'last.ckpt'}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert_trained_alike(sharded, folder / "checkpoints" / "final.ckpt", pretrained, data_root)
